"""All options of flow training. No torch here."""

from typing import Any, Literal

from wfimagevae.dataset.options import (
    FlowDataOptions,
    LoaderOptions,
    StreamOptions,
    TextDataOptions,
)
from wfimagevae.engine.options import (
    Fp8Options,
    MismatchOptions,
    OptimizerOptions,
    ShardingOptions,
    TrainingOptions,
)
from wfimagevae.eval.options import INCEPTION_WEIGHTS, WeightFile
from wfimagevae.generate.options import SAMPLERS
from wfimagevae.objective.options import MeanFlowOptions
from wfimagevae.options import (
    Count,
    ListOf,
    Natural,
    NonNegative,
    Options,
    Prompt,
    new_defaults,
    option,
    overrides_of,
)
from wfimagevae.task import TASKS


class FlowModelOptions(Options):
    """model: the velocity network"""

    model_name: str = option(
        "FlowDiT-S/2",
        "registered name: DiT-{S,B,L,XL}/{2,4,8}, FlowDiT-{S,B,L,XL}/{1,2,4,8}, UNet, "
        "SmallCNN, MLP; the data gives input size, channels and classes",
        "NAME",
        basic=True,
    )
    network_config: str | dict[str, Any] | None = option(
        None,
        "JSON of the network's configuration keys; they win over the name's",
        "FILE",
        basic=True,
        flag="model_config",
    )
    pretrained_model_name_or_path: str | None = option(
        None,
        "start from these weights: a .ckpt, an export, a hub name, or a public SiT or DiT "
        "file, whose size --model_name names",
        "PATH",
        basic=True,
    )


class TextEncoderTrainingOptions(Options):
    """parts: of the network, where it encodes text itself"""

    text_encoder_options: overrides_of(OptimizerOptions) = option(
        {},
        "what is different for the text encoder inside the network: optimizer=... lr=... "
        "lr_schedule=... and other flags of the optimizer and its schedule",
        "KEY=VALUE",
    )
    freeze_text_encoder: bool = option(False, "do not train that text encoder")
    freeze_flow: bool = option(False, "train nothing but that text encoder")


class FlowValidationOptions(Options):
    """validation: figures and samples while training"""

    eval_steps: Natural = option(5000, "steps between validations; 0 never", "N", basic=True)
    eval_batch_size: Count = option(64, "samples at a time", "N")
    eval_num_samples: Count = option(512, "held-out and generated samples that are compared", "N")
    eval_num_images: Natural = option(64, "samples in the picture; 0 draws none", "N")
    sampler: Literal[SAMPLERS] = option(
        "heun", "how they are generated (mean_flow models: in one step besides)", basic=True
    )
    sampling_steps: Count = option(25, "and in how many steps", "N")
    guidance_scale: NonNegative = option(
        1.0, "and with what classifier-free guidance; 1 is none", "W", basic=True
    )
    sample_prompts: ListOf[Prompt] | None = option(
        None, "what the picture shows, a row each (default: captions of held-out data)", "TEXT"
    )
    prompt_file: str | None = option(
        None,
        "likewise, of a file with a prompt a line, or a folder of .txt files",
        "FILE",
        basic=True,
    )
    eval_clip_model: str | None = option(
        None,
        "score a sample of each of them (clip_score): a CLIP network, as --clip_model of "
        "scripts/evaluate_prompts.py takes it",
        "NAME",
    )
    eval_fid: bool = option(
        False,
        "FID of the samples as well; of so few it compares steps of a run, not publications",
    )
    inception_weights: WeightFile | None = INCEPTION_WEIGHTS


# What suits a VAE of photographs does not suit a flow.
GENERATOR_DEFAULTS = {
    "exp_name": "flow",
    "batch_size": 64,
    "grad_accum_steps": 1,
    "lr": 1e-4,
    "weight_decay": 0.0,
    "clip_grad_norm": 1.0,
    "ema": True,
    "ema_decay": [0.9999],
    "log_steps": 100,
    "csv_log_steps": 100,
    "live_plot_every_steps": 1000,
    "dataset_num_worker": 4,
}


@new_defaults(**GENERATOR_DEFAULTS)
class FlowOptions(
    TrainingOptions,
    FlowDataOptions,
    LoaderOptions,
    StreamOptions,
    TextDataOptions,
    FlowModelOptions,
    MismatchOptions,
    TextEncoderTrainingOptions,
    MeanFlowOptions,
    FlowValidationOptions,
    ShardingOptions,
    Fp8Options,
):
    """task: all options of flow training"""

    task: Literal[tuple(TASKS)] = option("flow", "what to train", basic=True)

    def check_guidance(self, draws: bool) -> None:
        """Raises ValueError for guidance that this flow cannot learn, or follow if it ``draws``."""
        scale, is_guided = f"--guidance_scale {self.guidance_scale:g}", self.guidance_scale != 1
        may_have_classes = self.dataset != "images" or self.labels != "none"
        is_conditional = self.text_encoder or (may_have_classes and self.class_conditional)
        if not is_conditional and (self.guides_target or (draws and is_guided)):
            name = "--meanflow_omega or --meanflow_kappa" if self.guides_target else scale
            raise ValueError(
                f"{name} guides by a text or class, and this flow learns neither: give "
                "--text_encoder and --captions, or --labels, or leave it out"
            )
        if draws and is_guided and not self.cfg_dropout_prob:
            raise ValueError(f"{scale} needs --cfg_dropout_prob above 0, such as 0.1; or draw at 1")
        if draws and self.sampler == "mean_flow" and self.objective != "mean_flow":
            raise ValueError("--sampler mean_flow is for --objective mean_flow: use heun or euler")
