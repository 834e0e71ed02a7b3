"""All options of GLIDE's fine-tuning. No torch here."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from wfimagevae.dataset.options import FlowDataOptions, LoaderOptions, PrefixOptions, StreamOptions
from wfimagevae.engine.options import Fp8Options, MismatchOptions, ShardingOptions, TrainingOptions
from wfimagevae.generate.options import DISCRETE_SAMPLERS, UpsamplerOptions
from wfimagevae.objective.options import NoisePredictionOptions
from wfimagevae.options import Count, NonNegative, Positive, new_defaults, option
from wfimagevae.task import TASKS
from wfimagevae.task.flow_options import GENERATOR_DEFAULTS, FlowModelOptions, FlowValidationOptions


class GlideDataOptions(FlowDataOptions):
    """data: captioned images"""

    labels: ClassVar[str] = "none"
    class_conditional: ClassVar[bool] = False

    dataset: Literal["images", "shapes"] = option(
        "images", "images: files; shapes: coloured shapes drawn here, to try it", basic=True
    )
    resolution: Count | None = option(
        None, "height and width of images (default: the network's)", "PX", basic=True
    )


class GlideModelOptions(FlowModelOptions):
    """model: the network, and what of it learns"""

    model_name: str = option(
        "GLIDE-base",
        "GLIDE-base, GLIDE-upsample, GLIDE-base-inpaint, GLIDE-upsample-inpaint or GLIDE-latent",
        "NAME",
        basic=True,
    )
    pretrained_model_name_or_path: str | None = option(
        None,
        "start from: pretrained, OpenAI's file of that name, which is downloaded once; scratch; a "
        "path of such a file, a .ckpt or an export; for GLIDE-latent also pixel-transfer:PATH "
        "(default: pretrained; scratch for GLIDE-latent and with --model_config)",
        "PATH",
        basic=True,
    )
    clip_model: str = option(
        "ViT-L-14/laion2b_s32b_b82k",
        "of GLIDE-latent: whose embedding of the text is learned beside its tokens",
        "NAME",
    )
    train: Literal["all", "unet", "text", "unet-scratch", "text-scratch"] = option(
        "all",
        "what learns: all, the U-Net alone, or the text transformer alone (with what the U-Net "
        "reads of texts); -scratch begins that part anew",
        basic=True,
    )


def _check_vocabulary(spec: str) -> str:
    if spec.partition(":")[0] != "gpt2":
        raise ValueError(f"GLIDE reads the tokens of gpt2 or gpt2:FOLDER, got {spec}")
    return spec


Vocabulary = Annotated[str, AfterValidator(_check_vocabulary)]


class GlideTextOptions(PrefixOptions):
    """text: captions, and the vocabulary that reads them"""

    text_length: ClassVar[int | None] = None  # the network's
    text_encoder_precision: ClassVar[str] = "fp32"
    text_attention: ClassVar[str | None] = None
    # The text transformer learns as --train says.
    text_encoder_options: ClassVar[dict] = {}
    freeze_text_encoder: ClassVar[bool] = False
    freeze_flow: ClassVar[bool] = False

    text_encoder: Vocabulary = option(
        "gpt2",
        "gpt2:FOLDER with encoder.json and vocab.bpe, or vocab.json and merges.txt (or .gz of "
        "them); gpt2: the same from the Hugging Face hub, which is downloaded once",
        "SPEC",
        basic=True,
    )
    captions: str | None = option(
        None,
        "of images: sidecar (a .txt beside each image; of several lines one at random), "
        "filename (its words), manifest (its field 'caption', a string or a list), or a file of "
        "lines name<TAB>caption (default: sidecar); shapes bring their own",
        "SOURCE",
        basic=True,
    )


class GlideValidationOptions(FlowValidationOptions):
    """validation: figures and samples while training"""

    sampler: Literal[DISCRETE_SAMPLERS] = option("ddim", "how they are generated", basic=True)
    guidance_scale: NonNegative | None = option(
        None,
        "and with what classifier-free guidance (default: 4; upsamplers 1, which is none)",
        "W",
    )
    base_model: str | None = option(
        None,
        "of an upsampler: draw small images with this base model first (default: those of "
        "held-out images)",
        "PATH",
    )


@new_defaults(
    **GENERATOR_DEFAULTS
    | {
        "exp_name": "glide",
        "batch_size": 1,
        "epochs": 20,
        "train_crop": "resized",
        "resize_ratio": 0.8,
        "random_hflip": False,
        "wds_refuse_damaged": True,
        "eval_steps": 500,
        "eval_num_samples": 16,
        "eval_num_images": 16,
        "eval_batch_size": 8,
        "sampling_steps": 30,
    }
)
class GlideOptions(
    TrainingOptions,
    GlideDataOptions,
    LoaderOptions,
    StreamOptions,
    GlideTextOptions,
    GlideModelOptions,
    MismatchOptions,
    NoisePredictionOptions,
    GlideValidationOptions,
    UpsamplerOptions,
    ShardingOptions,
    Fp8Options,
):
    """task: all options of GLIDE's fine-tuning"""

    lr: Positive = option(
        1e-4, "peak learning rate; glide-finetune's guide has 3e-4", "R", basic=True
    )
    weight_decay: NonNegative = option(
        0.0, "decoupled (adam, sgd, rmsprop: an L2 penalty); glide-finetune's guide has 0.01", "W"
    )
    task: Literal[tuple(TASKS)] = option("glide", "what to train", basic=True)
