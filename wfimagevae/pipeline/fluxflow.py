"""FluxFlow's keys, units and metrics, each once, with the flags that they become. No torch here."""

from collections.abc import Mapping
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, Field

from wfimagevae.options import Count, Options, Share, worded
from wfimagevae.task import TASKS

OPTIONS = {task: resolve_name(TASKS[task]) for task in ("vae", "flow")}
# The networks that a pipeline trains, by our names and by FluxFlow's.
_OURS = ("encoder", "decoder", "discriminator", "flow", "text_encoder")
COMPONENTS = {name: {name} for name in _OURS} | {"vae": {"encoder", "decoder"}}
COMPONENTS |= {"compressor": {"encoder"}, "expander": {"decoder"}}
COMPONENTS |= {"D_img": {"discriminator"}, "flow_processor": {"flow"}}
# Factors between FluxFlow's weights, of means over elements, and ours, of sums over an image.
PIXELS, RATIO, INTERVAL = "3 H W", "3 H W / C h w", "1 / r1_interval"
_SAME = "counts once per pixel value in both"
_GAN = ("gan_training",)
DEFAULT_LAMBDA_ADV = 0.5  # of a discriminator that alone teaches the VAE


class Key(NamedTuple):
    """What a key of the file is to a training."""

    flag: str | None  # that it becomes; None for keys that say what is trained, and how
    task: str | None = None  # the kind of step that reads it; None for both
    needs: tuple[str, ...] = ()  # keys without which nothing reads it
    unit: str | None = None  # a loss weight's factor to the flag, or what is the same in both


def _flag(flag: str, *use: Any) -> Any:
    """The type of a key that is a flag: the flag's own, and its meaning."""
    options = next(cls for cls in OPTIONS.values() if flag in cls.by_flag())
    field = options.by_flag()[flag]
    kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    meaning = Field(description=f"--{flag}: {field.description}")
    return Annotated[kind | None, meaning, Key(flag, *use)]


Paths = worded(str | list[str], "a path, or a list of them")
Texts = list[worded(str, "a text")]
Numbers = Annotated[list[Count], Field(min_length=2, max_length=2)]


class Section(Options):
    """Keys of one place in the file; an unknown one is an error."""

    __init__ = BaseModel.__init__  # whose errors tell the places in sections within sections

    @classmethod
    def keys(cls) -> dict[str, Key]:
        """The keys that mean something to a training."""
        named = [(name, use) for name, field in cls.model_fields.items() for use in field.metadata]
        return {name: use for name, use in named if isinstance(use, Key)}

    def flags_of(self) -> dict[str, Any]:
        """The values of those that are flags, by flag."""
        return {key.flag: getattr(self, name) for name, key in self.keys().items() if key.flag}


class NetworkSection(Section):
    """A network: its registered name, its configuration (a JSON file, or the keys themselves), and
    weights that it starts from."""

    name: _flag("model_name") = None
    config: worded(str | dict[str, Any], "a JSON file, or keys and values") | None = None
    pretrained: _flag("pretrained_model_name_or_path") = None


class ModelSection(Section):
    """The networks; all steps share them."""

    vae: NetworkSection = NetworkSection()
    flow: NetworkSection = NetworkSection()
    text_encoder: _flag("text_encoder") = None
    text_length: _flag("text_length") = None
    text_attention: _flag("text_attention") = None
    use_gradient_checkpointing: _flag("gradient_checkpointing") = None


class _Images(Section):
    folder: ClassVar[str]  # the key of its images
    switch: ClassVar[str]  # what to write for one of shards
    data_weights: _flag("data_weights") = None
    captions_file: _flag("captions") = None
    fixed_prompt_prefix: _flag("fixed_prompt_prefix") = None
    img_size: _flag("resolution") = None
    webdataset_url: Paths | None = None
    webdataset_image_key: _flag("wds_image_key") = None
    webdataset_label_key: Literal["json"] | None = None
    webdataset_caption_key: _flag("wds_caption_key") = None

    @property
    def is_webdataset(self) -> bool:
        """Whether it is of shards: whether its ``switch`` is on."""
        key, value = self.switch.split(": ")
        return str(getattr(self, key)).lower() == value

    @property
    def paths(self) -> list[str]:
        """Folders, manifests or shards to train on."""
        return listed(getattr(self, "webdataset_url" if self.is_webdataset else self.folder))

    @property
    def held_out(self) -> list[str]:
        """What to validate on."""
        return listed(getattr(self, f"eval_{self.folder}"))


class DataSection(_Images):
    """Data of the steps that name no other."""

    folder, switch = "data_path", "use_webdataset: true"
    data_path: Paths | None = None
    eval_data_path: Paths | None = None
    channels: Literal[3] = 3
    reduced_min_sizes: _flag("reduced_min_sizes") = None
    use_webdataset: bool = False


class DatasetSection(_Images):
    """One of several data sets."""

    folder, switch = "image_folder", "type: webdataset"
    type: Literal["local", "webdataset"] = "local"
    image_folder: Paths | None = None
    eval_image_folder: Paths | None = None
    batch_size: _flag("batch_size") = None
    workers: _flag("dataset_num_worker") = None
    options: dict[str, Any] = Field({})


def listed(paths: str | list[str] | None) -> list[str]:
    """One path or several as a list."""
    return [] if not paths else [paths] if isinstance(paths, str) else paths


class Schedule(NamedTuple):
    """A learning-rate schedule: our name, its keys, flags of its name, a key that it needs."""

    kind: str
    keys: tuple[str, ...] = ()
    flags: Mapping[str, float] = MappingProxyType({})
    needs: str | None = None


# By torch's name with FluxFlow's documented defaults.
SCHEDULES = {
    "CosineAnnealingLR": Schedule("cosine", ("eta_min_factor",), {"min_lr_ratio": 0.1}),
    "LinearLR": Schedule("linear", ("end_factor",), {"min_lr_ratio": 0.1}),
    "StepLR": Schedule("step", ("step_size", "gamma"), {"lr_gamma": 0.1}, "step_size"),
    "ExponentialLR": Schedule("exponential", ("gamma",), {"lr_step_updates": 1}, "gamma"),
    "ConstantLR": Schedule("constant"),
    "ReduceLROnPlateau": Schedule(
        "plateau", ("factor", "patience"), {"lr_gamma": 0.1, "plateau_patience": 10}
    ),
}
# By our names, the same with our flags' own defaults.
SCHEDULES |= {s.kind: Schedule(s.kind, s.keys) for s in SCHEDULES.values()}
SCHEDULES["exponential"] = SCHEDULES["ExponentialLR"]
_OPTIMIZERS = ("AdamW", "Adam", "SGD", "RMSprop", "Lion", "Muon")


class OptimizerSection(Section):
    """An optimizer, by torch's names or by ours, in lower case."""

    type: Literal[*_OPTIMIZERS, *map(str.lower, _OPTIMIZERS)] = "AdamW"
    lr: _flag("lr") = None
    betas: worded(tuple[Share, Share], "a list of two numbers between 0 and 1") | None = None
    momentum: _flag("momentum") = None
    weight_decay: _flag("weight_decay") = None
    # Values of torch that ours always have.
    eps: Literal[1e-8] | None = None
    alpha: Literal[0.99] | None = None
    centered: Literal[False] | None = None
    amsgrad: Literal[False] | None = None
    decoupled_weight_decay: bool | None = None


class SchedulerSection(Section):
    """A learning-rate schedule, by torch's names or by ours."""

    type: Literal[*SCHEDULES] = "CosineAnnealingLR"
    warmup_steps: _flag("warmup_steps") = None
    eta_min_factor: Annotated[Share | None, Key("min_lr_ratio")] = None
    start_factor: Literal[1.0] | None = None  # warmup_steps climb to it
    end_factor: Annotated[Share | None, Key("min_lr_ratio")] = None
    step_size: Annotated[Count | None, Key("lr_step_updates")] = None
    gamma: Annotated[Share | None, Key("lr_gamma")] = None
    mode: Literal["min"] | None = None  # of validations, whatever their metric
    factor: Annotated[Share | None, Key("lr_gamma")] = None
    patience: Annotated[Count | None, Key("plateau_patience")] = None


Trained = Literal["vae", "discriminator", "flow", "text_encoder"]


class Optimization(Section):
    """Optimizers and schedules of the components."""

    optimizers: dict[Trained, OptimizerSection] = Field({})
    schedulers: dict[Trained, SchedulerSection] = Field({})


class Transition(Section):
    """When the next step begins."""

    mode: Literal["epoch", "loss_threshold"] = "epoch"
    metric: str | None = None
    threshold: _flag("stop_below") = None
    max_epochs: _flag("epochs") = None
    window: Count = 20


_Halves = worded(bool | Literal["encoder", "decoder"], "true, false, encoder or decoder")


class Settings(Section):
    """How a step trains: for one step, under ``defaults`` for all, or shared under ``training``."""

    n_epochs: _flag("epochs") = None
    max_steps: _flag("max_steps_per_epoch") = None
    dataset: str | None = None
    train_vae: _Halves | None = None
    gan_training: bool | None = None
    use_lpips: Annotated[bool | None, Key(None, "vae", ("train_vae",))] = None
    train_spade: _flag("train_spade", "vae") = None
    train_diff: bool | None = None
    train_diff_full: bool | None = None
    cache_latents: Annotated[bool | None, Key(None, "flow")] = None
    cfg_dropout_prob: _flag("cfg_dropout_prob", "flow") = None
    use_ema: _flag("ema") = None
    freeze: list[Literal[*COMPONENTS]] = Field([])
    unfreeze: list[Literal[*COMPONENTS]] = Field([])
    batch_size: _flag("batch_size") = None
    gradient_accumulation_steps: _flag("grad_accum_steps") = None
    workers: _flag("dataset_num_worker") = None
    precision: _flag("mix_precision") = None
    use_fp16: bool | None = None
    lr: _flag("lr") = None
    lr_min: _flag("min_lr_ratio") = None
    kl_beta: _flag("kl_weight", "vae", (), RATIO) = None
    kl_warmup_steps: _flag("kl_warmup_steps", "vae") = None
    kl_free_bits: _flag("kl_free_bits", "vae", (), "nats a latent value in both") = None
    lambda_lpips: _flag("perceptual_weight", "vae", ("use_lpips", "train_vae"), _SAME) = None
    mse_weight: _flag("mse_weight", "vae", ("train_vae",), _SAME) = None
    lambda_adv: _flag("disc_weight", "vae", _GAN, PIXELS) = None
    r1_interval: _flag("r1_interval", "vae", _GAN) = None
    r1_gamma: _flag("r1_weight", "vae", _GAN, INTERVAL) = None
    instance_noise_std: _flag("instance_noise_std", "vae", _GAN) = None
    instance_noise_decay: _flag("instance_noise_decay", "vae", _GAN) = None
    initial_clipping_norm: _flag("clip_grad_norm", None, (), PIXELS) = None
    optimization: Optimization = Optimization()
    transition_on: Transition = Transition()
    options: dict[str, Any] = Field({})


class StepSection(Settings):
    """A step: one training."""

    name: worded(
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)],
        "a name of at most 60 letters, digits, _, . and -",
    )
    description: str = ""
    steps: _flag("max_steps") = None


class PipelineSection(Section):
    """The steps, in order, and what they share."""

    defaults: Settings = Settings()
    datasets: dict[str, DatasetSection] = Field({})
    default_dataset: str | None = None
    steps: Annotated[list[StepSection], Field(min_length=1)]


class TrainingSection(Settings):
    """Values that all steps share, and the pipeline."""

    seed: _flag("seed") = None
    device: _flag("device") = None
    pipeline: PipelineSection


def _read_size(size: int | str | list[int]) -> list[int]:
    """A size as [width, height]."""
    sides = size.lower().split("x") if isinstance(size, str) else size
    sides = [size, size] if isinstance(size, int) else sides
    if len(sides) != 2 or not all(str(s).strip().isdigit() and int(s) for s in sides):
        raise ValueError("no size")
    return [int(side) for side in sides]


_Size = worded(
    Annotated[Count | str | Numbers, AfterValidator(_read_size)], "512, 768x512 or [768, 512]"
)


class OutputSection(Section):
    """Where everything goes, and what is written while training."""

    output_path: str = "outputs"
    log_interval: _flag("log_steps") = None
    checkpoint_save_interval: _flag("save_ckpt_step") = 500
    keep_last: Annotated[Count, Key("keep_last")] = 2
    samples_per_checkpoint: Count = 1
    no_samples: bool = False
    test_image_address: Paths = Field([])
    sample_captions: Annotated[Texts, Key("sample_prompts")] = Field([])
    sample_sizes: list[_Size] | None = None
    generate_diagrams: bool = True


class PipelineFile(Section):
    """The whole file."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    training: TrainingSection
    output: OutputSection = OutputSection()
