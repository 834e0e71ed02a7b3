"""Options of the training benchmark: a training's own, and what is timed. No torch here."""

from wfimagevae.options import Count, Natural, Options, Several, new_defaults, option
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.vae_options import VaeOptions


class BenchOptions(Options):
    """benchmark: what is timed"""

    steps: Count = option(10, "timed steps", "N", basic=True)
    warmup: Count = option(3, "steps beforehand that do not count", "N", basic=True)
    compare_with_bare_loop: bool = option(
        False,
        "also time forward, backward and optimizer alone, in turns with the trainer's loop, and "
        "print the ratio",
        basic=True,
    )
    profile: Natural = option(
        0, "also print the N kernels of a step that take the most time; 0 none", "N", basic=True
    )
    checkpoint: bool = option(
        False,
        "also save a checkpoint below --ckpt_dir, go on from it and remove it; print its size and "
        "the seconds of training's pause, of writing and of going on",
        basic=True,
    )


@new_defaults(grad_accum_steps=1, disc_start=0, image_path=None)  # None: random images
class VaeBenchOptions(VaeOptions, BenchOptions):
    """benchmark: what is timed"""

    compare_schedules: bool = option(
        False,
        "also time --gan_schedule alternate in turns with joint, one update of each player, and "
        "print the ratio",
        basic=True,
    )
    compare_attention: Several[Count] = option(
        [],
        "also time kernels for the autoencoder's attention, at so many positions of as many images "
        "as a batch has room for",
        "N",
        basic=True,
    )
    random_vgg: bool = option(
        False,
        "LPIPS with random weights, which need no file: time does not depend on them",
        basic=True,
    )


@new_defaults(grad_accum_steps=1)
class FlowBenchOptions(FlowOptions, BenchOptions):
    """benchmark: what is timed"""

    latent_shape: tuple[Count, Count, Count] = option(
        (4, 32, 32),
        "shape of random latents (--dataset latents without --data_path)",
        ("C", "H", "W"),
        basic=True,
    )
    num_classes: Natural = option(
        1000, "classes of random data (no --data_path); 0 is none", "N", basic=True
    )
    compare_objectives: bool = option(
        False,
        "also time MeanFlow's updates in turns with flow matching's, on one network, count the "
        "memory that each saves for backward, and print the ratios",
        basic=True,
    )
