"""A dry run: what a training would take, from one step on shapes alone; nothing is written."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from wfimagevae.engine.checkpoint import checkpoint_size
from wfimagevae.engine.cost import HeldBytes, size_of
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World
from wfimagevae.engine.loop import Task
from wfimagevae.engine.optim import run_length
from wfimagevae.engine.options import GPU_MEMORY, OPTIMIZERS, TrainingOptions
from wfimagevae.engine.report.gpu import peak_flops

ASSUMED_MFU = 0.25
# Of a GPU's memory, for CUDA's own, the kernels' workspaces and fragments.
_RESERVED = 0.1
# All players play by then, and whatever comes every so many steps does too.
_LATE_STEP = 720_720_000


def dry_run(
    options: TrainingOptions, assemble: Callable[[TrainingOptions, World, Path], Task]
) -> None:
    """Prints parameters, arithmetic, memory by part, checkpoint size, and time on GPUs.

    Networks and data are opened as for training, on the CPU; under torchrun the figures are those
    of as many GPUs, without a word between the processes.
    """
    if int(os.environ.get("RANK") or 0):
        return
    process = World(0, int(os.environ.get("WORLD_SIZE") or 1), torch.device("cpu"))
    # Nothing that needs the GPUs; what they would share is divided below.
    values, alone = options.values(), {"device": "cpu", "eval_steps": 0, "dataset_num_worker": 0}
    alone |= {n: False for n in ("compile", "fsdp", "fsdp_hybrid", "fp8") if n in values}
    num_shards = process.size if values.get("fsdp") else 1
    if values.get("fsdp_hybrid"):
        num_shards = int(os.environ.get("LOCAL_WORLD_SIZE", process.size))
    task = assemble(options.changed(**alone), process, Path())
    print("\n".join(_describe(options, process, task, num_shards)))


def _describe(options: TrainingOptions, process: World, task: Task, num_shards: int) -> list[str]:
    samples = options.batch_size * options.grad_accum_steps
    steps, _ = run_length(options, len(task.loader.dataset), process.size)
    # A player that begins late, or takes turns, has fewer updates than there are steps.
    updates = zip(task.players, task.updates(steps), strict=True)
    flops = sum(player.flops_per_sample * count / steps for player, count in updates)
    learn = " + ".join(
        f"{player.name} {sum(p.numel() for p in player.parameters):,}" for player in task.players
    )
    memory = _memory(options, task, num_shards)
    total = sum(memory.values())
    saved = checkpoint_size(task.parts(), task.players, options)
    noun, per_step = task.samples, samples * process.size
    lines = [
        f"{options.model_name}: {task.network.num_parameters():,} parameters; learning: {learn}",
        f"arithmetic: {flops / 1e9:.4g} GFLOP for each of the {noun} that an update learns from",
        f"memory of a GPU: {total / 2**30:.2f} GiB, of which",
        *(f"  {name:<12} {size / 2**30:8.2f}" for name, size in memory.items()),
        f"checkpoint: {saved:.3g} GB",
        f"length: {steps:,} steps of {per_step} {noun} ({options.batch_size} x "
        f"{options.grad_accum_steps} micro-batches x {process.size} GPUs)",
        f"estimated, not measured: at {ASSUMED_MFU:.0%} of the peak in {options.mix_precision}",
        f"| {process.size} x GPU | memory, GiB | fits | {noun}/s | hours |",
        "|---|---|---|---|---|",
    ]
    for name in options.gpus or GPU_MEMORY:
        model = name.upper().replace("RTX", "RTX ")
        rate = ASSUMED_MFU * peak_flops(model, options.mix_precision) * process.size / flops
        fits = total <= (1 - _RESERVED) * GPU_MEMORY[name] * 2**30
        figures = f"{rate:,.0f} | {steps * per_step / rate / 3600:,.1f}"
        lines.append(f"| {model} | {GPU_MEMORY[name]} | {'yes' if fits else 'no'} | {figures} |")
    return lines


def _memory(options: TrainingOptions, task: Task, num_shards: int) -> dict[str, float]:
    """Bytes on a GPU by part, the most that a step needs."""
    batch = next(task.loader)
    # Twice: the gradients that the first step leaves are there before the second one.
    traces = HeldBytes(), HeldBytes()
    with FakeTensorMode(allow_non_fake_inputs=True) as shapes:
        batch = tree_map_only(Tensor, shapes.from_tensor, batch)
        for trace in traces:
            for player in task.turn(_LATE_STEP):
                player.objective.begin_update()
                with trace, autocast(torch.device("cpu"), options.mix_precision):
                    loss, _ = player.objective(batch, _LATE_STEP)
                    loss.backward()
                    del loss
    inputs, trained = size_of(batch), size_of([player.parameters for player in task.players])
    averages = [part.state_dict() for p in task.players if p.ema for part in p.ema.parts().values()]
    return {
        "weights": (traces[0].before - inputs) / num_shards,
        "gradients": trained / num_shards,
        "optimizer": trained * OPTIMIZERS[options.optimizer] / num_shards,
        "averages": size_of(averages) / num_shards,
        "activations": traces[1].most,
        "samples": inputs * options.grad_accum_steps,
    }
