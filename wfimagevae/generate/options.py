"""Options of commands that load, sample, encode or measure trained networks. No torch here."""

import os
from typing import Literal, Self, get_args

from pydantic import model_validator

from wfimagevae.dataset.options import POINT_SETS
from wfimagevae.engine.options import DeviceOptions
from wfimagevae.options import (
    Count,
    Integer,
    Natural,
    NonNegative,
    Options,
    Positive,
    Prompt,
    Share,
    option,
)

FlowSampler = Literal["euler", "heun", "rk4", "dopri5", "dpmpp", "euler_maruyama", "mean_flow"]
DiscreteSampler = Literal["ddim", "sigma_euler", "euler_ancestral", "plms", "dpmpp_2m", "ddpm"]
PointSet = Literal[POINT_SETS]
Precision = Literal["fp32", "bf16", "fp16"]
SAMPLERS, DISCRETE_SAMPLERS = get_args(FlowSampler), get_args(DiscreteSampler)
Sampler = Literal[SAMPLERS + DISCRETE_SAMPLERS]


class ComputeOptions(DeviceOptions):
    """computation"""

    mixed_precision: Precision = option("fp32", "precision of the autoencoder")


class FlowComputeOptions(ComputeOptions):
    """computation"""

    mixed_precision: Precision = option(
        "fp32", "precision of the flow; an autoencoder decodes in fp32"
    )
    compile: bool = option(
        False, "compile the flow's blocks first: a minute or more, which many samples pay back"
    )


class TileOptions(ComputeOptions):
    """computation"""

    tile_size: Count | None = option(
        None, "encode and decode in overlapping tiles of this size, for images beyond memory", "PX"
    )


class AutoencoderOptions(Options):
    """model"""

    model_name: str = option("WFVAE2Image", "registered name", "NAME")
    from_pretrained: str | None = option(
        None, "Hugging Face folder or hub name, .ckpt file, or folder with .ckpt files", "PATH"
    )
    config_file: str | None = option(
        None, "configuration, for a .ckpt that embeds none", "JSON", flag="model_config"
    )
    ckpt_path: str | None = option(None, ".ckpt file, instead of --from_pretrained", "CKPT")
    use_raw_weights: bool = option(
        False, "take a .ckpt's raw weights, not their moving average (EMA)"
    )


class GeneratorOptions(Options):
    """model"""

    from_pretrained: str = option(
        ...,
        "a training checkpoint, a run's folder, an export, a hub name, a public SiT or GLIDE file, "
        "or pretrained: OpenAI's GLIDE, downloaded",
        "PATH",
    )
    model_name: str | None = option(
        None, "size of a public SiT file, such as DiT-XL/2; ours say it themselves", "NAME"
    )
    vae: str | None = option(
        None,
        "autoencoder of a latent flow, WFVAE2Image:PATH or diffusers:PATH_OR_NAME; not given: "
        "the one that the training recorded",
        "KIND:PATH",
    )
    text_encoder: str | None = option(
        None,
        "where the text encoder of a text flow is now: clip:, t5:, bert: or gpt2: and a path "
        "or hub name; not given: where it was in training",
        "KIND:PATH",
    )
    use_raw_weights: bool = option(
        False, "take a checkpoint's raw weights, not their moving average (EMA)"
    )


class UpsamplerOptions(Options):
    """upsampler: the second stage of GLIDE"""

    upsampler: str | None = option(
        None,
        "enlarge what the model draws by this upsampler: a checkpoint, public file or pretrained",
        "PATH",
    )
    upsampler_sampler: DiscreteSampler = option("ddim", "how it draws, without guidance")
    upsampler_steps: str = option("fast27", "and in which steps, as --timestep_respacing", "SPEC")
    upsampler_temperature: Share = option(0.997, "deviation of the noise that it starts from", "P")
    offload: bool = option(False, "keep the stage that does not draw in the CPU's memory")


class SamplingOptions(Options):
    """sampling"""

    sampler: Sampler | None = option(
        None,
        "not given: mean_flow for a MeanFlow model, ddim at discrete times (GLIDE, public DiT), "
        "else heun",
    )
    steps: Count | None = option(
        None,
        "not given: 1 for mean_flow, 30 at discrete times, else 25 (dopri5 chooses its own)",
        "N",
    )
    timestep_respacing: str | None = option(
        None,
        "of discrete times, in place of --steps: 27, steps of equal sections (10,10,3,2,2), ddim25 "
        "or fast27",
        "SPEC",
    )
    eta: NonNegative = option(0.0, "of ddim: share of the noise that ancestral steps add", "E")
    clip: Literal["static", "dynamic", "none"] | None = option(
        None,
        "of discrete times: predicted data are held in [-1, 1], by thresholds of their own, or not "
        "(not given: static for pixels, none for latents)",
    )
    guidance_scale: NonNegative = option(
        1.0, "classifier-free guidance; 1 is none, 0 ignores the class and the prompt", "W"
    )
    negative_prompt: Prompt = option(
        "", "what guidance leads away from; acts with a guidance scale other than 1", "TEXT"
    )
    guidance_interval: tuple[Share, Share] = option(
        (0.0, 1.0), "times that are guided; 0 is noise, 1 is data", ("LOW", "HIGH")
    )
    guidance_rescale: Share = option(
        0.0, "share by which guidance is brought back to the unguided contrast", "P"
    )
    guidance_channels: Count | None = option(
        None, "guide the first N channels only; public SiT samples: 3", "N"
    )
    time_shift: Positive = option(1.0, "above 1 spends more steps near the noise", "S")
    seed: Integer = option(0, "of all samples", "N")

    @model_validator(mode="after")
    def _check_guidance(self) -> Self:
        given = self.guidance_scale
        scales = given if isinstance(given, list) else [given]
        if self.negative_prompt and set(scales) == {1.0}:
            raise ValueError(
                "--negative_prompt acts through guidance: give a --guidance_scale above 1"
            )
        names = [f"{scale:g}" for scale in scales]  # as files and tables call them
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"--guidance_scale {' '.join(names)}: give {repeated[0]} once")
        return self


class CacheOptions(ComputeOptions):
    """output"""

    batch_size: Count = option(32, "images encoded at once", "N")
    num_workers: Natural = option(4, "reading processes", "N")
    posterior: Literal["sample", "mode"] = option(
        "sample",
        "sample: store mean and log-variance, so that training draws anew each epoch; mode: "
        "the mean alone, half the size",
    )
    flip: bool = option(False, "store the mirrored images' latents too")
    latent_dtype: Literal["fp16", "bf16", "fp32"] = option(
        "fp16",
        "stored type; fp16 rounds by 0.05 %% at most, less than a reconstruction shows, and "
        "takes half of fp32's space",
    )
    normalization: Literal["auto", "vae", "statistics"] = option(
        "auto",
        "shift and scale of training: from the VAE's own config, from the mean and standard "
        "deviation of these latents, or (auto) the former where there is one",
    )
    shard_size: Count = option(4096, "images a shard; processes share out whole shards", "N")


CROP_SIZE = option(None, "centre crop after resizing; not given: the resolution", "PX")


class ImageFolderOptions(Options):
    """images"""

    real_image_dir: str = option(
        ..., "originals: a folder (searched recursively) or a JSON-lines manifest", "PATH"
    )
    resolution: Count | None = option(
        None, "resize the shorter side to this; not given: native size, one image at a time", "PX"
    )
    crop_size: Count | None = CROP_SIZE
    subset_size: Natural = option(
        0, "only N images, evenly spaced over the sorted list; 0: all", "N"
    )
    batch_size: Count = option(4, "images at once", "N")
    num_workers: Natural = option(min(4, os.cpu_count() or 1), "reading processes", "N")
