"""All options of image-VAE training. No torch here."""

from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from wfimagevae.dataset.options import (
    EvalImageOptions,
    LoaderOptions,
    StreamOptions,
    VaeDataOptions,
)
from wfimagevae.engine.options import MismatchOptions, OptimizerOptions, TrainingOptions
from wfimagevae.model.losses.options import LossConfig
from wfimagevae.options import BOTH_WAYS, Count, Natural, Options, Positive, option, overrides_of
from wfimagevae.task import TASKS


class VaeModelOptions(Options):
    """model: the autoencoder"""

    model_name: str = option(
        "WFVAE2Image", "registered name of the architecture", "NAME", basic=True
    )
    network_config: str | dict[str, Any] | None = option(
        None,
        "JSON of the architecture, such as examples/wfvae2-image-1024.json",
        "FILE",
        basic=True,
        flag="model_config",
    )
    pretrained_model_name_or_path: str | None = option(
        None, "start from these weights: a .ckpt, a folder or a hub name", "PATH", basic=True
    )
    train_spade: Annotated[bool | None, BOTH_WAYS] = option(
        None,
        "modulate the decoder by the latent (SPADE), also where weights and configuration do not, "
        "and train that; --no_train_spade: leave what there is of it as it is (default: train it "
        "where the configuration has it)",
    )
    freeze_encoder: bool = option(False, "train the decoder only")
    freeze_decoder: bool = option(
        False, "train the encoder only; with a discriminator, add --no_adaptive_weight"
    )


class GameOptions(Options):
    """players: whose turn it is, and how the discriminator learns"""

    disc_cls: str = option(
        "wfimagevae.model.losses.LPIPSWithDiscriminator2D", "dotted path of the loss class", "PATH"
    )
    gan_schedule: Literal["joint", "alternate"] = option(
        "joint",
        "joint: both players on each batch, with one VAE forward; alternate: even steps the "
        "generator's, odd steps the discriminator's",
        basic=True,
    )
    disc_train_start: Natural | None = option(
        None, "step from which the discriminator learns; --disc_start if not given", "STEP"
    )
    disc_lr_ratio: Positive = option(4.0, "its learning rate, as a multiple of --lr", "R")
    discriminator_options: overrides_of(OptimizerOptions) = option(
        {},
        "what is different for the discriminator: optimizer=... lr=... lr_schedule=... and "
        "other flags of the optimizer and its schedule",
        "KEY=VALUE",
    )
    freeze_discriminator: bool = option(
        False, "the adversarial term counts, the discriminator does not learn"
    )
    not_resume_discriminator: bool = option(False, "resume with a fresh discriminator")


class VaeValidationOptions(Options):
    """validation: figures and pictures while training"""

    eval_steps: Natural = option(500, "steps between validations; 0 never", "N", basic=True)
    disable_val_image_dump: bool = option(False, "write no validation images")
    disable_patch_score_vis: bool = option(
        False, "write no maps of the discriminator's patch scores"
    )
    patch_score_vis_max_samples: Count = option(4, "images to draw those maps for", "N")


class VaeOptions(
    TrainingOptions,
    VaeDataOptions,
    LoaderOptions,
    StreamOptions,
    VaeModelOptions,
    MismatchOptions,
    LossConfig,
    GameOptions,
    EvalImageOptions,
    VaeValidationOptions,
):
    """task: all options of image-VAE training"""

    task: Literal[tuple(TASKS)] = option("vae", "what to train", basic=True)

    @property
    def trains_discriminator(self) -> bool:
        """Whether the discriminator is a player."""
        return self.disc_weight > 0 and not self.freeze_discriminator

    @property
    def num_pictures(self) -> tuple[int, int]:
        """Reconstructions that a validation writes, and of these, with maps of patch scores."""
        return (
            0 if self.disable_val_image_dump else self.eval_num_image_log,
            0 if self.disable_patch_score_vis else self.patch_score_vis_max_samples,
        )

    @model_validator(mode="after")
    def _check_frozen_halves(self) -> Self:
        if self.freeze_encoder and self.freeze_decoder:
            raise ValueError("nothing to train: leave out --freeze_encoder or --freeze_decoder")
        if self.freeze_decoder and self.disc_weight > 0 and self.adaptive_weight:
            raise ValueError(
                "the adaptive weight compares gradients at the decoder's last layer, which "
                "--freeze_decoder freezes; add --no_adaptive_weight"
            )
        return self
