"""Options of training and validation data, and of writing shards. No torch here."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from wfimagevae.options import (
    Count,
    Integer,
    ListOf,
    Natural,
    NonNegative,
    Number,
    Options,
    Positive,
    Several,
    Share,
    Switch,
    option,
)

POINT_SETS = ("five_gaussians", "moons", "checkerboard", "rings")
DRAWN = ("shapes", *POINT_SETS)  # made here, from no files
DATASETS = ("images", "latents", "shapes", "cifar10", *POINT_SETS)
CAPTION_KINDS = ("none", "sidecar", "filename", "manifest")  # anything else names a file
Crop = Literal["native", "resized", "center"]

_ANY_IMAGE = {"wds_image_key": "jpg;jpeg;png;webp;bmp;tiff"}
# Public sets of captioned images: where captions stand, and what is left out, as values of flags.
PRESETS: dict[str, dict[str, Any]] = {
    "laion": {
        "min_image_size": 256,
        "max_aspect_ratio": 2.0,
        "size_fields": ["original_width", "original_height"],
        "skip_nsfw": True,
        "require_caption": "any",
    },
    "alamy": {
        "wds_caption_key": "json:caption",
        "languages": ["en"],
        "require_caption": "any",
    },
    "simple": _ANY_IMAGE,
    "synthetic": {
        "wds_caption_key": "json:short_caption;long_caption",
        "require_caption": "any",
    },
    "datacomp-real": _ANY_IMAGE | {"require_caption": "any"},
    "datacomp-synthetic": _ANY_IMAGE | {"require_caption": "better"},
    "datacomp-clip": _ANY_IMAGE | {"require_caption": "better", "better_captions_min_score": 0.0},
}


class VaeDataOptions(Options):
    """data: training images"""

    # An autoencoder is told neither classes nor texts.
    labels: ClassVar[str] = "none"
    captions: ClassVar[str] = "none"
    fixed_prompt_prefix: ClassVar[str] = ""
    text_encoder: ClassVar[str | None] = None

    image_path: ListOf[str] = option(
        ...,
        "folder of jpg, png, webp, bmp, gif, tif, avif or heic, scanned recursively; JSON-lines "
        "manifest with a path under image_path, path or target, relative to the manifest; or "
        "WebDataset shards: a .tar file, brace pattern, glob, folder of .tar files, URL or "
        "pipe:COMMAND; or several of these",
        "PATH",
        basic=True,
    )
    use_manifest: bool = option(
        False, "insist that --image_path is a manifest (a file is always read as one)"
    )
    resolution: Count = option(
        1024,
        "height and width of a training crop; smaller images are left out, with a warning",
        "PX",
        basic=True,
    )
    train_crop: Crop = option(
        "native",
        "random crop at the image's own scale, or after resizing its short side to "
        "--resolution (shows whole scenes); center: the middle after resizing, enlarged too, "
        "as class-conditional ImageNet models see it",
        basic=True,
    )


class FlowDataOptions(Options):
    """data: what the flow learns to generate"""

    use_manifest: ClassVar[bool] = False

    dataset: Literal[DATASETS] = option(
        "images",
        "images: a folder or manifest; latents: what scripts/cache_latents.py wrote; shapes: "
        "coloured shapes drawn here, with classes; cifar10; the others: points in the plane",
        basic=True,
    )
    data_path: ListOf[str] | None = option(
        None,
        "of images: folder, JSON-lines manifest or WebDataset shards, as for --image_path of "
        "the image VAE, or several; else the folder of cached latents, or the one that holds "
        "cifar-10-batches-py",
        "PATH",
        basic=True,
    )
    eval_data_path: ListOf[str] | None = option(
        None,
        "held-out data of the same kind; shapes, cifar10 and points bring their own",
        "PATH",
        basic=True,
    )
    labels: Literal["none", "folder", "manifest"] = option(
        "none",
        "classes of images: none, the first folder below --data_path, or the manifest's "
        "'label' field; of shards, either of these reads --wds_label_key",
        basic=True,
    )
    class_conditional: bool = option(True, "condition on the classes, where the data has any")
    resolution: Count | None = option(
        None,
        "height and width of images and shapes, 32 if not given; latents are as they were "
        "cached, cifar10 has 32",
        "PX",
        basic=True,
    )
    train_crop: Crop = option(
        "center",
        "center: ADM's resize and centre crop; resized, native: random crops of the resized "
        "or the original image",
        basic=True,
    )
    num_shapes: Count = option(20000, "shapes in an epoch", "N")
    vae: str | None = option(
        None,
        "encode images while training: WFVAE2Image:PATH or diffusers:PATH_OR_NAME; for "
        "latents: another place of the autoencoder that made them",
        "KIND:PATH",
        basic=True,
    )


TextEncoderName = Annotated[str | None, BeforeValidator(lambda n: None if n == "none" else n)]


class PrefixOptions(Options):
    """text: captions as a condition, beside classes or alone"""

    fixed_prompt_prefix: str = option(
        "", "set before every caption, with '. ' between them", "TEXT"
    )


class TextDataOptions(PrefixOptions):
    """text: captions as a condition, beside classes or alone"""

    text_encoder: TextEncoderName = option(
        None,
        "bytes: a small transformer inside the network, which needs no download; or a frozen "
        "encoder of transformers: clip:, t5: or bert: and a folder or hub name; not given, or "
        "none: no text",
        "SPEC",
        basic=True,
    )
    text_length: Count | None = option(
        None,
        "bytes or tokens of a caption, what is longer is cut (default: 128, or what the "
        "encoder takes if that is less)",
        "N",
    )
    text_encoder_precision: Literal["fp32", "bf16"] = option(
        "fp32", "of a frozen encoder; bf16 takes half the memory and, on GPUs, half the time"
    )
    text_attention: Literal["cross", "joint"] | None = option(
        None,
        "cross: image tokens attend to the text (the default, which leaves a pretrained model "
        "unchanged at first); joint: both attend to each other (MMDiT)",
    )
    captions: str = option(
        "none",
        "of images: sidecar (a .txt beside each image; of several lines one at random), "
        "filename (its words), manifest (its field 'caption', a string or a list), or a file of "
        "lines name<TAB>caption; shapes and latents bring their own",
        "SOURCE",
        basic=True,
    )


class LoaderOptions(Options):
    """reading: how training data is read"""

    dataset_num_worker: Natural = option(
        8, "processes per rank that read data; 0 reads in the training process", "N", basic=True
    )
    dataloader_prefetch_factor: Count = option(
        2, "batches that each of these processes prepares ahead", "N"
    )
    data_timeout: NonNegative = option(
        600, "wait for one batch before its process is named and replaced; 0 waits for ever", "S"
    )
    disable_persistent_workers: bool = option(
        False, "accepted for old scripts; training reads one endless stream: no worker restarts"
    )
    index_cache_dir: str | None = option(
        None,
        "where lists of images are kept between runs (default: wfimagevae/index under "
        "$XDG_CACHE_HOME or ~/.cache)",
        "DIR",
    )


def _check_ratio(ratio: float) -> float:
    if 0 < ratio < 1:
        raise ValueError(f"is long side by short side: at least 1, or 0 for any, got {ratio}")
    return ratio


class StreamOptions(Options):
    """images at scale: shards, filters, buckets"""

    dataset_preset: Literal[tuple(PRESETS)] | None = option(
        None,
        "flags below as they suit a public set of captioned images; those that are given "
        "beside it win (datacomp-synthetic and datacomp-clip need --better_captions)",
    )
    data_weights: Several[Positive] | None = option(
        None, "share of each of several data paths (default: their sizes)", "W"
    )
    wds_image_key: str = option(
        "png;jpg;jpeg;webp",
        "WebDataset shards: types of members that are images, the first that a sample has",
        "TYPES",
    )
    wds_caption_key: str = option(
        "txt", "and of the caption: a type (each line is one), or json:FIELD", "KEY"
    )
    wds_label_key: str = option(
        "cls",
        "and of the class, a number or a name, which is read if --labels is given; shards "
        "that make_webdataset.py wrote have names that go with the numbers, and those count",
        "KEY",
    )
    wds_json_key: str = option(
        "json", "and of the JSON object whose fields the filters look at", "TYPE"
    )
    wds_shuffle_shards: Count = option(
        8, "shards whose samples are shuffled together; the order of shards is shuffled, too", "N"
    )
    wds_cache_dir: str | None = option(
        None,
        "where shards from servers are kept; a token for the server comes from the "
        "environment, WDS_TOKEN or HF_TOKEN. Shards without the index that make_webdataset.py "
        "writes beside them are all fetched before the first step, to see what is in them. A "
        "copy is fetched anew when the server names another version of it; that of a pipe:, "
        "or of a server that refuses HEAD, stays until you remove it (default: "
        "wfimagevae/shards under $XDG_CACHE_HOME or ~/.cache)",
        "DIR",
    )
    wds_cache_gb: NonNegative = option(
        0.0,
        "and their size, at which the one used longest ago is removed and, when it is needed, "
        "fetched again; leave room for twice --wds_shuffle_shards of them, which stay open "
        "while they are read; 0: no limit",
        "GB",
    )
    allow_pipe: bool = option(
        False, "run shards pipe:COMMAND that a YAML file names, too; here only, never in a file"
    )
    wds_refuse_damaged: Switch = option(
        False,
        "stop before the first step where a shard is cut short or damaged, in place of a "
        "warning and the samples that are whole",
    )
    min_image_size: Natural = option(0, "leave out images whose short side is smaller", "PX")
    max_aspect_ratio: Annotated[NonNegative, AfterValidator(_check_ratio)] = option(
        0.0, "leave out images whose long side is more than this many short sides; 0: none", "R"
    )
    size_fields: tuple[str, str] | None = option(
        None,
        "fields with the size that these two look at, such as original_width original_height; "
        "an image without them counts by its own",
        ("WIDTH", "HEIGHT"),
    )
    min_similarity: Number | None = option(
        None,
        "leave out images whose field 'similarity' is less (fields: of the json in a shard, "
        "or of the manifest's line)",
        "X",
    )
    skip_nsfw: Switch = option(False, "leave out images whose field 'nsfw' says so")
    languages: ListOf[str] = option(
        [], "leave out images whose field 'language' is none of these", "L"
    )
    skip_words: str = option(
        "",
        "leave out images whose caption has one of these words: a file of lines, or words "
        "separated by commas",
        "FILE_OR_WORDS",
    )
    better_captions: str | None = option(
        None,
        'captions in place of the data\'s own: JSON lines {"key": ..., "caption": ...}; a key '
        "is an image's path, or the key or the json's name of a sample, and fits one image "
        "only, held-out ones included (absolute path, SHARD::KEY)",
        "FILE",
    )
    better_captions_min_score: Number | None = option(
        None,
        "of each of these lines take 'caption' or 'original_caption', whichever has the higher "
        "'generated_caption_clip_score' or 'original_caption_clip_score', if that is at least "
        "this much; lines without both scores count for nothing",
        "X",
    )
    require_caption: Literal["no", "any", "better"] = option(
        "no", "leave out images without a caption, or without one in --better_captions"
    )
    random_hflip: Switch = option(True, "mirror half of the images left to right")
    color_jitter: Share = option(
        0.0,
        "change brightness, contrast and saturation of each image by up to this share, and its hue "
        "by 0.4 of that",
        "P",
    )
    resize_ratio: Annotated[Positive, Field(le=1)] = option(
        1.0,
        "with --train_crop resized: random crops whose area is this share of the largest one's "
        "or more, as far as nothing is enlarged; 1: the largest one",
        "R",
    )
    aspect_buckets: Natural = option(
        0,
        "keep the shapes of images: sides are rounded to this multiple at about the area of a "
        "square of --resolution, the long one at most 4 times the short one (longer images "
        "are cropped), and each batch is of one size; 0: squares",
        "MULTIPLE",
    )
    reduced_min_sizes: Several[Count] = option(
        [],
        "train on each image also scaled down to these short sides (--train_crop resized or "
        "center); each batch is of one size",
        "PX",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        return PRESETS.get(str(values.get("dataset_preset")), {}) | values


class EvalImageOptions(Options):
    """validation data: images that training never sees"""

    eval_image_path: ListOf[str] | None = option(
        None, "as for --image_path; not needed with --eval_steps 0", "PATH", basic=True
    )
    eval_resolution: Count = option(1024, "the short side is resized to this", "PX", basic=True)
    eval_crop_size: Count = option(
        1024, "height and width of the centre crop taken after that", "PX", basic=True
    )
    eval_batch_size: Count = option(2, "images per batch and rank", "N")
    eval_subset_size: Natural = option(
        64, "images used, evenly spaced over the sorted list; 0 uses all", "N"
    )
    eval_num_image_log: Natural = option(
        8, "reconstructions written beside their originals at each validation", "N"
    )


class WriteOptions(Options):
    """output"""

    output_dir: str = option(..., "where the shards go", "DIR")
    samples_per_shard: Count = option(
        4096, "samples a shard; processes share out whole shards", "N"
    )
    resize: Natural = option(0, "shrink larger images to this short side; 0: none", "PX")
    format: Literal["keep", "jpg", "png", "webp"] = option(
        "keep", "keep copies files as they are, but for those that are shrunk"
    )
    quality: Annotated[Count, Field(le=100)] = option(
        95, "of jpg and webp files that are encoded anew, 1 to 100", "Q"
    )
    shuffle: Switch = option(True, "mix the order of images, else it is that of their paths")
    seed: Integer = option(1234, "of that order", "N")
