"""What is timed of flow training, and what MeanFlow costs beyond flow matching."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from wfimagevae.dataset import TrainLoader
from wfimagevae.dataset.options import POINT_SETS
from wfimagevae.engine.device import autocast, enable_fast_kernels, resolve_device
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.task.bench_options import FlowBenchOptions
from wfimagevae.task.benchmark import RandomBatches, TrainBenchmark, ratio_in_turns
from wfimagevae.task.flow import FlowTask, build_flow_player
from wfimagevae.task.flow_networks import build_network, build_objective, update_flops
from wfimagevae.task.flow_space import (
    DEFAULT_RESOLUTION,
    FlowSpace,
    build_datasets,
    condition_of_batches,
    open_encoder,
    open_space,
    with_resolution,
)

SHOWN = (
    "model_name",
    "objective",
    "dataset",
    "batch_size",
    "grad_accum_steps",
    "mix_precision",
    "compile",
    "gradient_checkpointing",
    "meanflow_ratio",
    "text_encoder",
)


def build_benchmark(options: FlowBenchOptions) -> TrainBenchmark:
    """What training builds from the same options.

    Args:
        options: The trainer's flags and the benchmark's; without ``data_path``, one random batch
            of the data's shape is used again and again.

    Raises:
        ValueError: options that cannot be met, or objectives that cannot be compared.
    """
    if options.compare_objectives:
        _check_comparable(options)
    space, batches = _data(options)
    network = build_network(options, space, resolve_device(options.device))
    return _benchmark(options, network, space, batches)


def compare(options: FlowBenchOptions) -> dict[str, float]:
    """With ``compare_objectives``: time and saved memory of MeanFlow over flow matching.

    Both train the same network, one with an end time: the time of an update in turns, and what
    `saved_bytes` counts for one batch.

    Args:
        options: The trainer's flags and the benchmark's, as `build_benchmark` took them.
    """
    if not options.compare_objectives:
        return {}
    space, batches = _data(options)
    mean_flow = options.changed(objective="mean_flow")  # its network takes an end time
    network = build_network(mean_flow, space, resolve_device(options.device))
    unguided = {"meanflow_omega": 1.0, "meanflow_kappa": 0.0}
    flow_matching = options.changed(objective="flow_matching", **unguided)
    benches = [_benchmark(o, network, space, batches) for o in (mean_flow, flow_matching)]
    ratio = ratio_in_turns(*(bench.step_seconds for bench in benches), options.steps)
    batch = next(batches)
    objectives = [bench.task.players[0].objective for bench in benches]
    saved = [saved_bytes(o, batch, options.mix_precision) for o in objectives]
    return {"mean_flow_over_flow_matching": ratio, "saved_memory_ratio": saved[0] / saved[1]}


def _check_comparable(options: FlowBenchOptions) -> None:
    if options.batch_size * options.meanflow_ratio < 1:
        raise ValueError(
            "--compare_objectives needs a sample with an end time of its own in every batch: "
            f"raise --batch_size {options.batch_size} or --meanflow_ratio "
            f"{options.meanflow_ratio}"
        )
    if options.gradient_checkpointing:
        raise ValueError(
            "--compare_objectives counts what is saved for backward; leave out "
            "--gradient_checkpointing, which saves nothing"
        )
    if options.direction_weight:
        raise ValueError("--compare_objectives: MeanFlow has no --direction_weight; leave it out")


def saved_bytes(objective: nn.Module, batch: dict, precision: str = "fp32") -> int:
    """Memory that a loss keeps for its backward pass, without the parameters, in bytes.

    Args:
        objective: ``objective(batch, step) -> (loss, logs)``.
        batch: What it gets.
        precision: As for `autocast`.
    """
    parameters = list(objective.parameters())
    own = {p.untyped_storage().data_ptr() for p in parameters}
    storages = {}

    def save(tensor):
        if not tensor._is_zerotensor():  # forward mode's zero tangents have no memory
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage  # kept: its address stays its own
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with hooks, autocast(parameters[0].device, precision):
        objective(batch, 0)
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


def _benchmark(
    options: FlowBenchOptions, network: nn.Module, space: FlowSpace, batches: Iterator
) -> TrainBenchmark:
    objective = build_objective(options, network, space)
    player = build_flow_player(options, objective, 10**6)
    player.flops_per_sample = update_flops(objective, options)
    task = FlowTask(player, None, batches, facts={})
    shown = {name: getattr(options, name) for name in SHOWN}
    shown |= {"sample_shape": network.sample_shape, "num_classes": network.num_classes}
    return TrainBenchmark(task, batches, options, shown)


@dataclass(frozen=True)
class _RandomData:
    """What `open_space` asks of a data set."""

    data_key: str
    sample_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] = ()
    has_captions: bool = True
    text_facts: None = None


def _data(options: FlowBenchOptions) -> tuple[FlowSpace, Iterator]:
    """The flow's space and its batches, from ``data_path`` or random, on the device."""
    if options.fsdp:
        raise ValueError("--fsdp shards over several processes; this times one: leave it out")
    device = resolve_device(options.device)
    enable_fast_kernels(device)
    seed_everything(options.seed)
    options = options.changed(eval_steps=0)  # no held-out data, no pictures
    if not options.data_path:
        return _random_data(options, device)
    options = with_resolution(options)
    dataset, _ = build_datasets(options)
    loader = TrainLoader(
        dataset,
        options.batch_size,
        num_workers=options.dataset_num_worker,
        prefetch_factor=options.dataloader_prefetch_factor,
        device=device,
    )
    return open_space(options, dataset, device), loader


def _random_data(
    options: FlowBenchOptions, device: torch.device
) -> tuple[FlowSpace, RandomBatches]:
    kind, size = options.dataset, options.batch_size
    classes = options.num_classes if options.class_conditional else 0
    if kind == "latents":
        shape = tuple(options.latent_shape)
        text = open_encoder(options, _RandomData("latent", shape, classes), device)
        told = condition_of_batches(classes, text)
        space = FlowSpace(shape, classes, lambda batch: batch["latent"], None, {}, told, text)
        inputs = {"latent": torch.randn(size, *shape, device=device)}
    else:
        key = "point" if kind in POINT_SETS else "image"
        side = options.resolution or DEFAULT_RESOLUTION
        shape = (2,) if key == "point" else (3, side, side)
        space = open_space(options, _RandomData(key, shape, classes), device)
        inputs = {key: torch.rand(size, *shape, device=device) * 2 - 1}
    if classes:
        inputs["label"] = torch.randint(classes, (size,), device=device)
    if space.text is not None:
        inputs["caption"] = ["a caption of some forty characters, as many are"] * size
    return space, RandomBatches(inputs)
