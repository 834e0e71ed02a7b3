"""What is timed of image-VAE training."""

from collections.abc import Iterator

import torch

from wfimagevae.dataset import TrainLoader
from wfimagevae.dataset.open import build_image_data
from wfimagevae.engine.device import enable_fast_kernels, resolve_device
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.task.bench_options import VaeBenchOptions
from wfimagevae.task.benchmark import RandomBatches, TrainBenchmark, ratio_in_turns
from wfimagevae.task.vae import VaeTask, build_players
from wfimagevae.task.vae_networks import build_loss, build_vae

SHOWN = (
    "resolution",
    "batch_size",
    "grad_accum_steps",
    "mix_precision",
    "compile",
    "gan_schedule",
    "disc_weight",
    "adaptive_weight",
    "perceptual_weight",
)


def build_benchmark(options: VaeBenchOptions) -> TrainBenchmark:
    """What training builds from the same options.

    Args:
        options: The trainer's flags; without ``image_path``, one random batch is used again
            and again.
    """
    device = resolve_device(options.device)
    enable_fast_kernels(device)
    seed_everything(options.seed)
    vae = build_vae(options, device)
    loss = build_loss(options, device)
    players = build_players(options, vae, loss, max_steps=10**6)
    batches = _batches(options, device)
    task = VaeTask(players, vae, loss, None, batches, options)
    return TrainBenchmark(task, batches, options, {name: getattr(options, name) for name in SHOWN})


def compare(options: VaeBenchOptions) -> dict[str, float]:
    """With ``compare_schedules``: the time of one update of each player, ``alternate`` over joint.

    Args:
        options: The trainer's flags and the benchmark's; every step is both players' business
            (``disc_start`` 0).
    """
    if not options.compare_schedules:
        return {}
    alternate, joint = (
        build_benchmark(options.changed(gan_schedule=name)) for name in ("alternate", "joint")
    )
    ratio = ratio_in_turns(lambda: alternate.step_seconds(2), joint.step_seconds, options.steps)
    return {"alternate_over_joint": ratio}


def _batches(options: VaeBenchOptions, device: torch.device) -> Iterator:
    if not options.image_path:
        shape = (options.batch_size, 3, options.resolution, options.resolution)
        image = torch.rand(shape, device=device) * 2 - 1
        return RandomBatches({"image": image.contiguous(memory_format=torch.channels_last)})
    dataset = build_image_data(options, options.image_path)
    return TrainLoader(
        dataset,
        options.batch_size,
        num_workers=options.dataset_num_worker,
        prefetch_factor=options.dataloader_prefetch_factor,
        device=device,
    )
