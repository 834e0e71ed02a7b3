"""Options that every kind of training shares. No torch here."""

from typing import Annotated, Literal, Self

from pydantic import model_validator

from wfimagevae.options import (
    BOTH_WAYS,
    Count,
    Factor,
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

# Name -> numbers that it keeps of each parameter.
OPTIMIZERS = {"adamw": 2, "adam": 2, "sgd": 1, "rmsprop": 1, "lion": 1, "muon": 1}
DDP_TIMEOUT = 30.0  # minutes
# Name -> GiB of GPUs whose peak rate `report.gpu` knows.
GPU_MEMORY = {"rtx3090": 24, "rtx4090": 24, "rtx5090": 32, "l4": 24, "l40s": 48}
GPU_MEMORY |= {"a100": 80, "h100": 80, "h200": 141, "b200": 180}


class DeviceOptions(Options):
    """computation: where"""

    device: str = option(
        "auto", "auto (CUDA, else Apple's MPS, else CPU), cuda, cuda:N, mps or cpu", "D", basic=True
    )


class RunOptions(Options):
    """run: how long, where, how precisely"""

    config: str | None = option(
        None,
        "YAML file of flag names and values; flags given on the command line win over it",
        "FILE",
        basic=True,
    )
    exp_name: str = option("wfvae2-image", "name of the run", "NAME", basic=True)
    seed: Integer = option(1234, "of all randomness", "N", basic=True)
    epochs: Count = option(
        10, "passes over the data, where --max_steps is not given", "N", basic=True
    )
    max_steps: Count | None = option(
        None, "iterations of the training loop; wins over --epochs", "N", basic=True
    )
    max_steps_per_epoch: Count | None = option(
        None,
        "an epoch ends after this many iterations, however much data there is; the next one goes "
        "on where it ended",
        "N",
    )
    mix_precision: Literal["bf16", "fp16", "fp32"] = option(
        "bf16", "arithmetic of the networks; losses and norms stay in float32", basic=True
    )
    compile: Annotated[bool | None, BOTH_WAYS] = option(
        None,
        "compile the networks block by block (torch.compile); not given: on CUDA, with Triton",
        basic=True,
    )
    compile_mode: Literal[
        "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ] = option("default", "torch.compile's mode", "MODE")
    gradient_checkpointing: bool = option(
        False, "recompute activations in backward: less memory, about a third slower"
    )
    find_unused_parameters: bool = option(
        False, "DDP searches for parameters without gradients; slower, rarely needed"
    )
    ddp_timeout: Positive = option(
        DDP_TIMEOUT, "processes wait for each other this long before they end as broken", "MINUTES"
    )


class StopOptions(Options):
    """early stop: a run may end by one of its logged values"""

    stop_metric: str | None = option(
        None, "end early by this logged value, such as train/kl_loss (with --stop_below)", "NAME"
    )
    stop_below: Number | None = option(
        None, "as soon as its mean over the last --stop_window progress lines is below this", "X"
    )
    stop_window: Count = option(20, "progress lines", "N")


class OptimizerOptions(Options):
    """optimization: the optimizer and its schedule"""

    optimizer: Literal[tuple(OPTIMIZERS)] = option(
        "adamw",
        "lion: pip install pytorch-optimizer, and a third to a tenth of AdamW's --lr; muon: for "
        "the matrices of hidden layers, AdamW for the rest, at AdamW's --lr",
    )
    lr: Positive = option(1e-5, "peak learning rate", "R", basic=True)
    weight_decay: NonNegative = option(
        1e-4, "decoupled weight decay; adam, sgd, rmsprop: an L2 penalty", "W"
    )
    beta1: Share = option(0.9, "decay of the first moment: adamw, adam, lion, muon's AdamW", "P")
    beta2: Share | None = option(
        None, "decay of the second moment; 0.999 if not given, lion: 0.99", "P"
    )
    momentum: Share | None = option(None, "if not given: sgd 0.9, rmsprop 0, muon 0.95", "P")
    lr_schedule: Literal["constant", "linear", "cosine", "step", "exponential", "plateau"] = option(
        "constant", "after the warm-up, down to --min_lr_ratio"
    )
    lr_gamma: Factor = option(
        0.5, "factor of every --lr_step_updates (step; exponential: smoothly) or plateau", "P"
    )
    lr_step_updates: Count = option(10_000, "updates between factors of step and exponential", "N")
    plateau_patience: Count = option(
        5, "validations without a better score that make a plateau", "N"
    )
    warmup_steps: Natural = option(0, "updates of linear warm-up", "N")
    min_lr_ratio: Share = option(0.0, "share of the peak that the schedule does not go below", "P")


class UpdateOptions(Options):
    """updates: what one is made of, and averages of the weights"""

    batch_size: Count = option(2, "images of a micro-batch on each process", "N", basic=True)
    grad_accum_steps: Count = option(8, "micro-batches of an update", "N", basic=True)
    clip_grad_norm: Positive = option(
        1e5, "largest gradient norm, in units of the logged loss", "N"
    )
    max_bad_updates: Count = option(
        50, "non-finite updates in a row that stop the run; each is skipped", "N"
    )
    ema: Switch = option(False, "keep an average of the weights and validate it too", basic=True)
    ema_decay: Several[Share] = option(
        [0.999],
        "share of the average that an update keeps; several make several averages, of which the "
        "first is validated and exported",
        "P",
    )
    ema_warmup: bool = option(True, "average over fewer updates at first")


class CheckpointOptions(Options):
    """checkpoints: saving and resuming"""

    ckpt_dir: str = option(
        "./results/",
        "folder of runs; this one's is DIR/EXP_NAME-lr..-bs..-ga..-rs..",
        "DIR",
        basic=True,
    )
    save_ckpt_step: Natural = option(
        0, "steps between checkpoints, besides; 0: by the clock, and the last", "N", basic=True
    )
    save_every_minutes: NonNegative = option(
        15, "minutes between checkpoints; 0 never", "M", basic=True
    )
    keep_last: Natural = option(3, "checkpoints to keep besides the best; 0 keeps all", "K")
    resume_from_checkpoint: str | None = option(
        None,
        "a checkpoint, a run's folder, or 'auto': the newest of this --exp_name, or a fresh start "
        "where there is none",
        "PATH",
        basic=True,
    )
    weights_from: ListOf[str] | None = option(
        None,
        "a fresh run starts from the weights in these checkpoints, raw and averaged, each network "
        "from the first that trained it; optimizers and data start anew",
        "CKPT",
    )
    not_resume_optimizer: bool = option(
        False, "resume weights but not optimizers and their schedules"
    )


class MismatchOptions(Options):
    """model: where its weights do not fit"""

    ignore_mismatched_sizes: bool = option(
        False, "pretrained weights of another shape start anew, with a warning"
    )


TrackerKind = Literal["none", "wandb", "trackio", "tensorboard"]
TRACKER = option("none", "experiment tracker besides the files", basic=True)


class LoggingOptions(Options):
    """logging: what is written while training"""

    log_steps: Count = option(10, "steps between progress lines", "N", basic=True)
    csv_log_steps: Count = option(10, "steps between rows of the losses' CSV file", "N")
    csv_log_path: str | None = option(
        None, "the CSV file; the run's training_losses.csv if not given", "FILE"
    )
    disable_csv_log: bool = option(False, "write no CSV and no plots")
    disable_live_plot: bool = option(False, "write no loss plots")
    live_plot_every_steps: Count = option(
        10, "steps between redrawn loss plots (at most 2 %% of the time)", "N"
    )
    tracker: TrackerKind = TRACKER
    list_flags: bool = option(False, "print every flag and its kind, for launch scripts, and exit")


class ShardingOptions(Options):
    """sharding: of networks that are too large for one GPU"""

    fsdp: bool = option(
        False,
        "shard weights, gradients and optimizer over all processes (FSDP2), for models beyond one "
        "GPU's memory; checkpoints stay whole without --fsdp_checkpoints",
    )
    fsdp_hybrid: bool = option(
        False, "--fsdp within each machine, copies of that on all: less to send between machines"
    )
    fsdp_checkpoints: bool = option(
        False,
        "each process of --fsdp saves its own shards, to a folder checkpoint-N.ckpt/ that is read "
        "like a file, by any number of processes: none holds the whole state",
    )

    @model_validator(mode="after")
    def _check_sharding(self) -> Self:
        if not self.fsdp and (self.fsdp_hybrid or self.fsdp_checkpoints):
            raise ValueError("--fsdp_hybrid and --fsdp_checkpoints say how to shard: add --fsdp")
        return self


class Fp8Options(Options):
    """FP8: arithmetic of 8 bits, on GPUs that have it"""

    fp8: bool = option(
        False,
        "linear layers of the network's blocks multiply in FP8 (pip install torchao); weights, "
        "averages and checkpoints stay as they are; with --mix_precision bf16 and --compile",
    )


class DryRunOptions(Options):
    """dry run: what a training would take, before it begins"""

    dry_run: bool = option(
        False,
        "print parameters, arithmetic, memory by part, checkpoint size and estimated time, and end",
        basic=True,
    )
    gpus: ListOf[Literal[tuple(GPU_MEMORY)]] = option(
        [], "the time on these GPUs; all that are known if not given", flag="for"
    )


class TrainingOptions(
    RunOptions,
    DryRunOptions,
    DeviceOptions,
    UpdateOptions,
    OptimizerOptions,
    StopOptions,
    CheckpointOptions,
    LoggingOptions,
):
    """What every kind of training shares; each adds its data, ``resolution`` and ``eval_steps``."""

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.gpus and not self.dry_run:
            raise ValueError("--for names GPUs of a dry run: add --dry_run")
        if (self.stop_metric is None) != (self.stop_below is None):
            raise ValueError("--stop_metric and --stop_below go together: give both or neither")
        return self
