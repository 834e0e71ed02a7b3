"""Options of commands that measure images and sets of samples. No torch here."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, model_validator

from wfimagevae.generate.options import (
    CROP_SIZE,
    ComputeOptions,
    ImageFolderOptions,
    PointSet,
    Sampler,
    SamplingOptions,
)
from wfimagevae.options import (
    Count,
    Natural,
    NonNegative,
    Options,
    OutputFile,
    Positive,
    new_defaults,
    option,
)

Metric = Literal["psnr", "ssim", "lpips", "rfid"]
ReferenceMetric = Literal["fid", "kid", "precision_recall", "energy_distance"]
SetMetric = Literal[ReferenceMetric, "clip_score"]
LabelSampling = Literal["balanced", "random"]
METRICS, SET_METRICS = get_args(Metric), get_args(SetMetric)
REFERENCE_METRICS = get_args(ReferenceMetric)
# Exit status where a metric's weights are missing and everything else went well.
METRIC_UNAVAILABLE = 3
EXIT_STATUS = (
    "Exit status: 0 all measured; 1 all but unreadable images, which are listed; "
    f"{METRIC_UNAVAILABLE} all but metrics whose weights are missing; 2 an error. "
    "torchrun turns each of 2 and 3 into 1."
)


def _check_file(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    return path


WeightFile = Annotated[str, AfterValidator(_check_file)]
INCEPTION_WEIGHTS = option(None, "torch-fidelity's Inception, if not cached", "FILE")


class MetricOptions(Options):
    """metrics"""

    metric: list[Metric] = option(["psnr", "ssim", "lpips"], "what to measure")
    lpips_net: Literal["vgg", "alex"] = option("vgg", "backbone of LPIPS")
    lpips_weights: WeightFile | None = option(
        None, "torchvision backbone of LPIPS, if not cached", "FILE"
    )
    inception_weights: WeightFile | None = INCEPTION_WEIGHTS


class PairOptions(ImageFolderOptions, MetricOptions):
    """Originals, as they are measured against their reconstructions, and the metrics."""


@new_defaults(resolution=256, metric=list(METRICS))
class BenchmarkOptions(PairOptions, ComputeOptions):
    """models"""

    model: list[str] = option(
        ...,
        "WFVAE2Image:PATH, or diffusers:PATH_OR_NAME (a hub name may end in a subfolder); "
        "repeat it for each model",
        "KIND:PATH",
        repeat="one",
    )
    config_file: str | None = option(
        None,
        "configuration, for .ckpt files with none in them or beside them; the other models "
        "keep their own",
        "JSON",
        flag="model_config",
    )
    timing_seconds: Positive = option(
        3.0, "how long encoding and decoding are timed, each, in seconds", "S"
    )
    output: OutputFile | None = option(None, "Markdown file to write as well", "FILE")


class SetMetricOptions(Options):
    """metrics"""

    metric: list[SetMetric] | None = option(
        None,
        "what to measure; not given: all but clip_score, of points the energy distance. That one "
        "compares raw pixels or points, and needs no download",
    )
    features: Literal["inception", "dinov2"] = option(
        "inception", "network of fid, kid and precision_recall; published FIDs use inception"
    )
    inception_weights: WeightFile | None = INCEPTION_WEIGHTS
    dinov2_repo: str | None = option(None, "clone of the DINOv2 code, if torch.hub has none", "DIR")
    dinov2_weights: WeightFile | None = option(
        None, "weights of its ViT-L/14, with --dinov2_repo", "FILE"
    )
    clip_model: str = option(
        "ViT-L-14",
        "of clip_score, the mean cosine of its embeddings of each image and its prompt (of files: "
        "--captions of the generated ones): an architecture of open_clip, alone or with public "
        "weights or a file, such as ViT-L-14/laion2b_s32b_b82k or ViT-L-14/FILE; or clip: and a "
        "folder or hub name of a CLIPModel of transformers",
        "MODEL",
    )
    kid_subset_size: Count = option(1000, "samples a subset", "N")
    kid_num_subsets: Count = option(100, "subsets of KID", "N")
    energy_samples: Count = option(
        5000, "the energy distance compares at most N samples of each set, chosen at random", "N"
    )

    @model_validator(mode="after")
    def _check_dinov2(self) -> "SetMetricOptions":
        if bool(self.dinov2_repo) != bool(self.dinov2_weights):
            raise ValueError("--dinov2_repo and --dinov2_weights are given together or not at all")
        return self


class ReferenceOptions(Options):
    """reference: what generated samples are compared with"""

    real_image_dir: str | None = option(
        None,
        "a folder (searched recursively), a JSON-lines manifest, or an .npz file whose arr_0 "
        "is uint8 (N, H, W, 3)",
        "PATH",
    )
    dataset: Literal["shapes", "cifar10", PointSet] | None = option(
        None, "instead: fresh shapes or points, or the training images of CIFAR-10"
    )
    data_path: str | None = option(None, "folder that holds cifar-10-batches-py", "PATH")
    num_real: Count | None = option(
        None, "samples of --dataset; not given: as many as are generated (cifar10: all)", "N"
    )
    resolution: Count | None = option(
        None, "shorter side of the images in folders, resized; not given: native size", "PX"
    )
    crop_size: Count | None = CROP_SIZE
    subset_size: Natural = option(
        0, "only N of the folder's images, evenly spaced over the sorted list; 0: all", "N"
    )


class CaptionOptions(Options):
    """captions: of the reference: prompts of flows with text"""

    captions: str = option(
        "none",
        "of --real_image_dir: sidecar (a .txt beside each image), filename (its words), "
        "manifest (its field 'caption'), or a file of lines name<TAB>caption; --dataset shapes has "
        "its own",
        "SOURCE",
    )
    fixed_prompt_prefix: str = option(
        "", "set before every caption, with '. ' between them; of flows with text", "TEXT"
    )


def _several(name: str, default: list | None) -> Any:
    """A flag of sampling, of which several values may be given."""
    field = SamplingOptions.model_fields[name]
    help = f"{field.description}; several: each combination is a row of the table"
    return option(default, help, (field.json_schema_extra or {}).get("unit"))


class SamplingGridOptions(SamplingOptions):
    """sampling"""

    sampler: list[Sampler] | None = _several("sampler", None)
    steps: list[Count] | None = _several("steps", None)
    guidance_scale: list[NonNegative] = _several("guidance_scale", [1.0])

    def combinations(self) -> list[Self]:
        """These options with one sampler, one number of steps and one guidance scale each."""
        names = "sampler", "steps", "guidance_scale"
        several = itertools.product(*(getattr(self, name) or [None] for name in names))
        return [self.changed(**dict(zip(names, values, strict=True))) for values in several]


class GenerationOptions(Options):
    """generation"""

    num_images: Count = option(10_000, "samples a row", "N")
    label_sampling: LabelSampling = option(
        "balanced", "classes or prompts in turn, or drawn for each sample"
    )
    batch_size: Count = option(64, "samples at a time", "N")
    num_workers: Natural = option(2, "reading processes", "N")
