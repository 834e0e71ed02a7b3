"""Flags that every kind of training shares. No torch here."""

from wfimagevae.engine.args import (
    Parser,
    add_config_arg,
    add_device_arg,
    add_overrides,
    add_several,
    add_switch,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    probability,
)
from wfimagevae.engine.schedules import SCHEDULES

OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop", "lion", "muon")


def add_run_args(parser: Parser) -> None:
    """Declares flags for the run, its optimization, checkpoints and logs."""
    add_config_arg(parser)
    add_run_group(parser)
    add_optimization_group(parser)
    add_checkpoint_group(parser)
    add_logging_group(parser)


def add_run_group(parser: Parser) -> None:
    """Declares how long, where and how precisely to train."""
    group = parser.add_argument_group("run", "how long, where, how precisely")
    group.add_argument("--exp_name", default="wfvae2-image", metavar="NAME", help="name of the run")
    group.add_argument("--seed", type=int, default=1234, metavar="N", help="of all randomness")
    group.add_argument(
        "--epochs",
        type=positive_int,
        default=10,
        metavar="N",
        help="passes over the data, where --max_steps is not given",
    )
    group.add_argument(
        "--max_steps",
        type=positive_int,
        metavar="N",
        help="iterations of the training loop; wins over --epochs",
    )
    group.add_argument(
        "--max_steps_per_epoch",
        type=positive_int,
        metavar="N",
        help="an epoch ends after this many iterations, however much data there is; the next one "
        "goes on where it ended",
    )
    group.add_argument(
        "--stop_metric",
        metavar="NAME",
        help="end early by this logged value, such as train/kl_loss (with --stop_below)",
    )
    group.add_argument(
        "--stop_below",
        type=float,
        metavar="X",
        help="as soon as its mean over the last --stop_window progress lines is below this",
    )
    group.add_argument(
        "--stop_window", type=positive_int, default=20, metavar="N", help="progress lines"
    )
    add_device_arg(group)
    group.add_argument(
        "--mix_precision",
        choices=("bf16", "fp16", "fp32"),
        default="bf16",
        help="arithmetic of the networks; losses and norms stay in float32",
    )
    add_switch(group, "--compile", False, "compile the networks block by block (torch.compile)")
    group.add_argument(
        "--compile_mode",
        default="default",
        metavar="MODE",
        choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        help="torch.compile's mode",
    )
    group.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="recompute activations in backward: less memory, about a third slower",
    )
    group.add_argument(
        "--find_unused_parameters",
        action="store_true",
        help="DDP searches for parameters without gradients; slower, rarely needed",
    )


def add_sharding_arg(group) -> None:
    """Declares ``--fsdp``, for kinds of training whose network can be sharded."""
    group.add_argument(
        "--fsdp",
        action="store_true",
        help="shard weights, gradients and optimizer over all processes (FSDP2), for models "
        "beyond one GPU's memory; checkpoints stay whole",
    )


def add_optimization_group(parser: Parser) -> None:
    """Declares the optimizer and its schedule."""
    group = parser.add_argument_group("optimization", "the optimizer and its schedule")
    group.add_argument(
        "--batch_size",
        type=positive_int,
        default=2,
        metavar="N",
        help="images of a micro-batch on each process",
    )
    group.add_argument(
        "--grad_accum_steps",
        type=positive_int,
        default=8,
        metavar="N",
        help="micro-batches of an update",
    )
    add_optimizer_flags(group)
    group.add_argument(
        "--clip_grad_norm",
        type=positive_float,
        default=1e5,
        metavar="N",
        help="largest gradient norm, in units of the logged loss",
    )
    group.add_argument(
        "--max_bad_updates",
        type=positive_int,
        default=50,
        metavar="N",
        help="non-finite updates in a row that stop the run; each is skipped",
    )
    add_switch(group, "--ema", False, "keep an average of the weights and validate it too")
    add_several(
        group,
        "--ema_decay",
        probability,
        [0.999],
        "share of the average that an update keeps; several make several averages, of which the "
        "first is validated and exported",
    )
    add_switch(group, "--ema_warmup", True, "average over fewer updates at first")


def add_optimizer_flags(group) -> None:
    """Declares an optimizer and a schedule: what one player may have unlike the others."""
    group.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default="adamw",
        help="lion: pip install pytorch-optimizer, and a third to a tenth of AdamW's --lr; muon: "
        "for the matrices of hidden layers, AdamW for the rest, at AdamW's --lr",
    )
    group.add_argument(
        "--lr", type=positive_float, default=1e-5, metavar="R", help="peak learning rate"
    )
    group.add_argument(
        "--weight_decay",
        type=non_negative_float,
        default=1e-4,
        metavar="W",
        help="decoupled weight decay; adam, sgd, rmsprop: an L2 penalty",
    )
    group.add_argument(
        "--beta1",
        type=probability,
        default=0.9,
        metavar="P",
        help="decay of the first moment: adamw, adam, lion, muon's AdamW",
    )
    group.add_argument(
        "--beta2",
        type=probability,
        metavar="P",
        help="decay of the second moment; 0.999 if not given, lion: 0.99",
    )
    group.add_argument(
        "--momentum",
        type=probability,
        metavar="P",
        help="if not given: sgd 0.9, rmsprop 0, muon 0.95",
    )
    group.add_argument(
        "--lr_schedule",
        choices=SCHEDULES,
        default="constant",
        help="after the warm-up, down to --min_lr_ratio",
    )
    group.add_argument(
        "--lr_gamma",
        type=probability,
        default=0.5,
        metavar="P",
        help="factor of every --lr_step_updates (step; exponential: smoothly) or plateau",
    )
    group.add_argument(
        "--lr_step_updates",
        type=positive_int,
        default=10_000,
        metavar="N",
        help="updates between factors of step and exponential",
    )
    group.add_argument(
        "--plateau_patience",
        type=positive_int,
        default=5,
        metavar="N",
        help="validations without a better score that make a plateau",
    )
    group.add_argument(
        "--warmup_steps",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="updates of linear warm-up",
    )
    group.add_argument(
        "--min_lr_ratio",
        type=probability,
        default=0.0,
        metavar="P",
        help="share of the peak that the schedule does not go below",
    )


def add_player_options(group, flag: str, whose: str) -> None:
    """Declares ``flag`` of ``key=value`` words: one player's own optimizer and schedule."""
    add_overrides(
        group,
        flag,
        add_optimizer_flags,
        f"what is different for {whose}: optimizer=... lr=... lr_schedule=... and other flags of "
        "the optimizer and its schedule",
    )


def add_checkpoint_group(parser: Parser) -> None:
    """Declares saving and resuming."""
    group = parser.add_argument_group("checkpoints", "saving and resuming")
    group.add_argument(
        "--ckpt_dir",
        default="./results/",
        metavar="DIR",
        help="folder of runs; this one's is DIR/EXP_NAME-lr..-bs..-ga..-rs..",
    )
    group.add_argument(
        "--save_ckpt_step",
        type=non_negative_int,
        default=500,
        metavar="N",
        help="steps between checkpoints; 0 saves the last only",
    )
    group.add_argument(
        "--save_every_minutes",
        type=non_negative_float,
        default=0,
        metavar="M",
        help="minutes between checkpoints, besides; 0 never",
    )
    group.add_argument(
        "--keep_last",
        type=non_negative_int,
        default=0,
        metavar="K",
        help="checkpoints to keep besides the best; 0 keeps all",
    )
    group.add_argument(
        "--resume_from_checkpoint",
        metavar="PATH",
        help="a checkpoint, a run's folder, or 'auto': the newest of this "
        "--exp_name, or a fresh start where there is none",
    )
    group.add_argument(
        "--weights_from",
        nargs="+",
        metavar="CKPT",
        help="a fresh run starts from the weights in these checkpoints, raw and averaged, each "
        "network from the first that trained it; optimizers and data start anew",
    )
    group.add_argument(
        "--not_resume_optimizer",
        action="store_true",
        help="resume weights but not optimizers and their schedules",
    )


def add_logging_group(parser: Parser) -> None:
    """Declares what is written while training."""
    group = parser.add_argument_group("logging", "what is written while training")
    group.add_argument(
        "--log_steps",
        type=positive_int,
        default=10,
        metavar="N",
        help="steps between progress lines",
    )
    group.add_argument(
        "--csv_log_steps",
        type=positive_int,
        default=10,
        metavar="N",
        help="steps between rows of the losses' CSV file",
    )
    group.add_argument(
        "--csv_log_path",
        metavar="FILE",
        help="the CSV file; the run's training_losses.csv if not given",
    )
    group.add_argument("--disable_csv_log", action="store_true", help="write no CSV and no plots")
    group.add_argument("--disable_live_plot", action="store_true", help="write no loss plots")
    group.add_argument(
        "--live_plot_every_steps",
        type=positive_int,
        default=10,
        metavar="N",
        help="steps between redrawn loss plots (at most 2 %% of the time)",
    )
    group.add_argument(
        "--tracker",
        choices=("none", "wandb", "trackio", "tensorboard"),
        default="none",
        help="experiment tracker besides the files",
    )
    group.add_argument(
        "--list_flags",
        action="store_true",
        help="print every flag and its kind, for launch scripts, and exit",
    )
