"""What a pipeline file may say: sections, keys and their types. No torch here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wfimagevae.engine.options import OPTIMIZERS, SCHEDULES

# torch's names, and ours.
TORCH_OPTIMIZERS = {
    "AdamW": "adamw",
    "Adam": "adam",
    "SGD": "sgd",
    "RMSprop": "rmsprop",
    "Lion": "lion",
    "Muon": "muon",
}
TORCH_SCHEDULES = {
    "CosineAnnealingLR": "cosine",
    "LinearLR": "linear",
    "StepLR": "step",
    "ExponentialLR": "exponential",
    "ConstantLR": "constant",
    "ReduceLROnPlateau": "plateau",
}

Count = Annotated[int, Field(gt=0)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Paths = str | list[str]
Component = Literal[
    "encoder",
    "compressor",
    "decoder",
    "expander",
    "vae",
    "discriminator",
    "D_img",
    "flow",
    "flow_processor",
    "text_encoder",
]
Size = Count | str | Annotated[list[Count], Field(min_length=2, max_length=2)]


class Section(BaseModel):
    """Keys with exact types; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NetworkSection(Section):
    """A network: its registered name, its configuration (a JSON file, or the keys themselves),
    and weights that it starts from."""

    name: str | None = None
    config: str | dict[str, Any] | None = None
    pretrained: str | None = None


class ModelSection(Section):
    """The networks; all steps share them."""

    vae: NetworkSection = NetworkSection()
    flow: NetworkSection = NetworkSection()
    text_encoder: str | None = None
    text_length: Count | None = None
    text_attention: Literal["cross", "joint"] | None = None
    use_gradient_checkpointing: bool | None = None


class DataSection(Section):
    """Data of the steps that name no other."""

    data_path: Paths | None = None
    eval_data_path: Paths | None = None
    data_weights: list[Positive] | None = None
    captions_file: str | None = None
    fixed_prompt_prefix: str | None = None
    img_size: Count | None = None
    channels: Literal[3] = 3
    reduced_min_sizes: list[Count] | None = None
    use_webdataset: bool = False
    webdataset_url: Paths | None = None
    webdataset_image_key: str | None = None
    webdataset_label_key: Literal["json"] | None = None
    webdataset_caption_key: str | None = None


class DatasetSection(Section):
    """One of several data sets."""

    type: Literal["local", "webdataset"] = "local"
    image_folder: Paths | None = None
    eval_image_folder: Paths | None = None
    data_weights: list[Positive] | None = None
    captions_file: str | None = None
    fixed_prompt_prefix: str | None = None
    img_size: Count | None = None
    webdataset_url: Paths | None = None
    webdataset_image_key: str | None = None
    webdataset_label_key: Literal["json"] | None = None
    webdataset_caption_key: str | None = None
    batch_size: Count | None = None
    workers: Annotated[int, Field(ge=0)] | None = None
    options: dict[str, Any] = {}


class OptimizerSection(Section):
    """An optimizer, by torch's names or by ours."""

    type: Literal[*TORCH_OPTIMIZERS, *OPTIMIZERS] = "AdamW"
    lr: Positive | None = None
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    momentum: Share | None = None
    weight_decay: Number | None = None
    eps: Positive | None = None
    alpha: Share | None = None
    centered: bool | None = None
    amsgrad: bool | None = None
    decoupled_weight_decay: bool | None = None


class SchedulerSection(Section):
    """A learning-rate schedule, by torch's names or by ours."""

    type: Literal[*TORCH_SCHEDULES, *SCHEDULES] = "CosineAnnealingLR"
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    eta_min_factor: Share | None = None
    start_factor: Share | None = None
    end_factor: Share | None = None
    total_iters: Count | None = None
    step_size: Count | None = None
    gamma: Share | None = None
    mode: Literal["min", "max"] | None = None
    factor: Share | None = None
    patience: Count | None = None


class Optimizers(Section):
    """By component."""

    vae: OptimizerSection | None = None
    discriminator: OptimizerSection | None = None
    flow: OptimizerSection | None = None
    text_encoder: OptimizerSection | None = None


class Schedulers(Section):
    """By component."""

    vae: SchedulerSection | None = None
    discriminator: SchedulerSection | None = None
    flow: SchedulerSection | None = None
    text_encoder: SchedulerSection | None = None


class Optimization(Section):
    """Optimizers and schedules of the components."""

    optimizers: Optimizers = Optimizers()
    schedulers: Schedulers = Schedulers()


class Transition(Section):
    """When the next step begins."""

    mode: Literal["epoch", "loss_threshold"] = "epoch"
    metric: str | None = None
    threshold: float | None = None
    max_epochs: Count | None = None
    window: Count = 20


class Settings(Section):
    """How a step trains: for one step, under ``defaults`` for all, or shared under ``training``."""

    n_epochs: Count | None = None
    max_steps: Count | None = None
    dataset: str | None = None
    train_vae: bool | Literal["encoder", "decoder"] | None = None
    gan_training: bool | None = None
    use_lpips: bool | None = None
    train_spade: bool | None = None
    train_diff: bool | None = None
    train_diff_full: bool | None = None
    cache_latents: bool | None = None
    cfg_dropout_prob: Share | None = None
    use_ema: bool | None = None
    freeze: list[Component] = []
    unfreeze: list[Component] = []
    batch_size: Count | None = None
    gradient_accumulation_steps: Count | None = None
    workers: Annotated[int, Field(ge=0)] | None = None
    precision: Literal["bf16", "fp16", "fp32"] | None = None
    use_fp16: bool | None = None
    lr: Positive | None = None
    lr_min: Share | None = None
    initial_clipping_norm: Positive | None = None
    kl_beta: Number | None = None
    kl_warmup_steps: Annotated[int, Field(ge=0)] | None = None
    kl_free_bits: Number | None = None
    lambda_adv: Number | None = None
    lambda_lpips: Number | None = None
    mse_weight: Number | None = None
    r1_gamma: Number | None = None
    r1_interval: Count | None = None
    instance_noise_std: Number | None = None
    instance_noise_decay: Share | None = None
    optimization: Optimization = Optimization()
    transition_on: Transition = Transition()
    options: dict[str, Any] = {}


class Step(Settings):
    """One training."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
    description: str = ""
    steps: Count | None = None


class Pipeline(Section):
    """The steps, in order, and what they share."""

    defaults: Settings = Settings()
    datasets: dict[str, DatasetSection] = {}
    default_dataset: str | None = None
    steps: Annotated[list[Step], Field(min_length=1)]


class TrainingSection(Settings):
    """Values that all steps share, and the pipeline."""

    seed: int | None = None
    device: str | None = None
    pipeline: Pipeline


class OutputSection(Section):
    """Where everything goes, and what is written while training."""

    output_path: str = "outputs"
    log_interval: Count | None = None
    checkpoint_save_interval: Count | None = None
    keep_last: Count = 2
    samples_per_checkpoint: Count = 1
    no_samples: bool = False
    test_image_address: Paths = []
    sample_captions: list[str] = []
    sample_sizes: list[Size] | None = None
    generate_diagrams: bool = True


class PipelineFile(Section):
    """The whole file."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    training: TrainingSection
    output: OutputSection = OutputSection()
