"""What a training step costs, phase by phase, and what alternating players or MeanFlow cost."""

import functools
import itertools
import logging
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from wfimagevae.dataset.loader import TrainLoader
from wfimagevae.dataset.open import build_image_data
from wfimagevae.dataset.options import POINT_SETS
from wfimagevae.engine.checkpoint import checkpoint_path, read_checkpoint, restore, whole_checkpoint
from wfimagevae.engine.cost import HeldBytes, count_macs
from wfimagevae.engine.device import autocast, compiles, synchronize, use_device
from wfimagevae.engine.distributed import World
from wfimagevae.engine.loop import Task, fit
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.report.gpu import peak_flops
from wfimagevae.engine.run import Run
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.task.bench_options import FlowBenchOptions, VaeBenchOptions
from wfimagevae.task.flow import (
    FlowTask,
    build_flow_player,
    build_network,
    build_objective,
)
from wfimagevae.task.flow_space import DEFAULT_RESOLUTION, FlowSpace, build_datasets, open_space
from wfimagevae.task.vae import VaeTask, build_loss, build_players, build_vae, check_sizes

_VAE_FACTS = (
    *("resolution", "batch_size", "grad_accum_steps", "mix_precision", "compile"),
    *("gan_schedule", "disc_weight", "adaptive_weight", "perceptual_weight"),
)
_FLOW_FACTS = (
    *("model_name", "objective", "dataset", "batch_size", "grad_accum_steps", "mix_precision"),
    *("compile", "gradient_checkpointing", "meanflow_ratio", "text_encoder"),
)


class TrainBenchmark:
    """Times the steps of a training that is built as the trainer builds it.

    ``facts`` are what a result says of the training.
    """

    def __init__(self, task: Task, options: TrainingOptions, facts: dict):
        self.task, self.batches, self.options = task, task.loader, options
        self.device = task.players[0].device
        self.facts = facts
        is_cuda = self.device.type == "cuda"
        self.device_name = torch.cuda.get_device_name(self.device) if is_cuda else str(self.device)
        self.peak = peak_flops(self.device_name, options.mix_precision)

    def time_steps(self, warmup: int, steps: int) -> dict:
        """Speed without interference, then the phases with the device synchronised between.

        Args:
            warmup: Steps before either measurement.
            steps: Steps of each.

        Returns:
            ``img_per_s``, ``ms`` a step, median ``ms_data``, ``ms_forward``, ``ms_backward``
            (with clipping, averages and what else an update does) and ``ms_optimizer``, summed
            over the players of a step; peak memory in bytes; ``tflop_per_s`` and ``mfu``, the
            operations that progress takes (`Player.flops_per_sample`) and their share of the
            device's peak.
        """
        self.step_seconds(range(warmup))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        timed = range(warmup, warmup + steps)
        elapsed = self.step_seconds(timed)
        images = steps * self.options.batch_size * self.options.grad_accum_steps
        turns = [player for step in timed for player in self.task.turn(step)]
        flops = sum(player.flops_per_sample for player in turns) * images / steps
        result = {"img_per_s": images / elapsed, "ms": 1000 * elapsed / steps}
        result |= self._time_phases(warmup + steps, steps)
        if self.device.type == "cuda":
            result["peak_memory"] = torch.cuda.max_memory_allocated(self.device)
        else:
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            result["peak_resident"] = resident if sys.platform == "darwin" else 1024 * resident
        result["tflop_per_s"] = flops / elapsed / 1e12
        result["mfu"] = flops / elapsed / self.peak if self.peak else None
        return result | {"device": self.device_name, "torch": torch.__version__} | self.facts

    def _time_phases(self, first: int, steps: int) -> dict[str, float]:
        begun, times, rows, removers = 0.0, {}, [], []

        def start(*_):
            nonlocal begun
            synchronize(self.device)
            begun = time.perf_counter()

        def stop(phase, *_):
            synchronize(self.device)
            times[phase] += time.perf_counter() - begun

        for player in self.task.players:
            removers += [
                player.objective.register_forward_pre_hook(start),
                player.objective.register_forward_hook(lambda *_: stop("forward")),
                player.optimizer.register_step_pre_hook(start),
                player.optimizer.register_step_post_hook(lambda *_: stop("optimizer")),
            ]
        for step in range(first, first + steps):
            times = dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)
            start()
            micro = [next(self.batches) for _ in range(self.options.grad_accum_steps)]
            stop("data")
            players = self.task.turn(step)
            update = self._seconds(lambda p=players, m=micro, s=step: [q.update(m, s) for q in p])
            times["backward"] = update - times["forward"] - times["optimizer"]
            rows.append(times)
        for remover in removers:
            remover.remove()
        return {f"ms_{p}": 1000 * statistics.median(row[p] for row in rows) for p in rows[0]}

    def loop_overhead(self, steps: int, rounds: int = 7) -> float:
        """Time of the trainer's loop over that of the objectives' bare steps, in turns.

        The bare step is zero_grad, forward, backward and optimizer step of each player; the
        loop adds clipping, checks, logs, files and signals.

        Args:
            steps: Steps of each in a round.
            rounds: Rounds; the median ratio is returned.
        """
        log = logging.getLogger("wfimagevae")
        level = log.level
        log.setLevel(logging.WARNING)
        nothing_else = {"eval_steps": 0, "save_ckpt_step": 0, "disable_live_plot": True}
        nothing_else |= {"grad_accum_steps": 1, "csv_log_path": None, "max_steps": steps}
        options, process = self.options.changed(**nothing_else), World(0, 1, self.device)
        ratios = []
        with tempfile.TemporaryDirectory() as name:
            for _ in range(rounds):
                run = Run(options, process, Path(name), self.task)
                run.parts = {}  # no weights are saved
                bare = self._seconds(lambda: self._bare_steps(steps))
                with run.interrupt:
                    loop = self._seconds(lambda run=run: fit(run))
                ratios.append(loop / bare)
        log.setLevel(level)
        return statistics.median(ratios)

    def profile(self, most: int) -> dict:
        """Where the time of a step goes.

        Returns:
            ``kernels``, the ``most`` expensive of the device (of a CPU the operations) with their
            time on it and its share, and ``busy``, the time of all of them over that of a step.
        """
        device = "cpu" if self.device.type == "cpu" else "device"
        seconds = min(self.step_seconds(), self.step_seconds())
        with torch.profiler.profile() as profiler:
            self.step_seconds()
        times = {
            (entry.key, entry.count): getattr(entry, f"self_{device}_time_total") / 1000
            for entry in profiler.key_averages()
            if entry.device_type.name.lower() == self.device.type and not entry.is_user_annotation
        }
        total = sum(times.values())
        rows = [
            {"kernel": name, "calls": calls, "ms": ms, "share": ms / total}
            for (name, calls), ms in sorted(times.items(), key=lambda item: -item[1])[:most]
        ]
        return {"kernels": rows, "busy": total / seconds / 1000}

    def checkpoint(self) -> dict[str, float]:
        """Bytes of a checkpoint below ``ckpt_dir``, and what it takes.

        That is the seconds of training's pause to save it, of writing it besides, and of going on.
        """
        self.step_seconds()  # before the first one optimizers have no state
        folder, process = Path(self.options.ckpt_dir), World(0, 1, self.device)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            run = Run(self.options, process, Path(name), self.task)
            run.parts.pop("sampler_state", None)  # random batches have none
            pause, writing = self._seconds(run.save), self._seconds(run.finish_writing)
            path = checkpoint_path(run.folder, run.step)
            size, parts = path.stat().st_size, run.parts
            resuming = self._seconds(
                lambda: restore(parts, read_checkpoint(whole_checkpoint(path)))
            )
        seconds = {"s_pause": pause, "s_write": writing, "s_resume": resuming}
        return {"checkpoint_bytes": size} | seconds

    def _bare_steps(self, steps: int) -> None:
        for step in range(steps):
            batch = next(self.batches)
            for player in self.task.turn(step):
                player.optimizer.zero_grad()
                player.objective.begin_update()
                with autocast(self.device, self.options.mix_precision):
                    loss, _ = player.objective(batch, step)
                loss.backward()
                player.optimizer.step()

    def step_seconds(self, steps: Sequence[int] = (0,)) -> float:
        """Time of these steps, with their batches."""

        def train():
            for step in steps:
                micro = [next(self.batches) for _ in range(self.options.grad_accum_steps)]
                for player in self.task.turn(step):
                    player.update(micro, step)

        return self._seconds(train)

    def _seconds(self, function: Callable) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        function()
        synchronize(self.device)
        return time.perf_counter() - start


def ratio_in_turns(first: Callable[[], float], second: Callable[[], float], rounds: int) -> float:
    """Median ratio of two measured times, taken in turns after one round that does not count."""
    times = [(first(), second()) for _ in range(rounds + 1)][1:]
    return statistics.median(a / b for a, b in times)


class RandomBatches(Iterator):
    """One batch of random numbers, (B, ...) each, again and again, at ever new positions."""

    dataset, num_unreadable = range(1), 0

    def __init__(self, inputs: dict[str, Tensor]):
        self._inputs, self._positions = inputs, itertools.count()

    def ready(self, count: int, seconds: float) -> bool:
        return True

    def __next__(self) -> dict:
        size = len(next(iter(self._inputs.values())))
        positions = list(itertools.islice(self._positions, size))
        return self._inputs | {"position": positions, "unreadable": []}


def vae_benchmark(options: VaeBenchOptions) -> TrainBenchmark:
    """What image-VAE training builds from the same options.

    Without ``image_path``, one random batch is used again and again.
    """
    device = use_device(options.device)
    seed_everything(options.seed)
    options = options.changed(compile=compiles(options, device))
    options = options.changed(lpips_weights=False) if options.random_vgg else options
    vae, loss = build_vae(options, device), build_loss(options, device)
    check_sizes(options, [(options.resolution, options.resolution)], vae, loss)
    players, _ = build_players(options, vae, loss)
    if options.image_path:
        dataset = build_image_data(options, options.image_path)
        batches = TrainLoader(dataset, options.batch_size, options, device)
    else:
        shape = (options.batch_size, 3, options.resolution, options.resolution)
        image = torch.rand(shape, device=device) * 2 - 1
        batches = RandomBatches({"image": image.contiguous(memory_format=torch.channels_last)})
    task = VaeTask(options, players, vae, loss, batches)
    return TrainBenchmark(task, options, {name: getattr(options, name) for name in _VAE_FACTS})


def compare_schedules(options: VaeBenchOptions) -> dict[str, float]:
    """Time of one update of each player, ``alternate`` over ``joint``.

    Every step is both players' business (``disc_start`` 0).
    """
    alternate, joint = (
        vae_benchmark(options.changed(gan_schedule=name)) for name in ("alternate", "joint")
    )
    both = functools.partial(alternate.step_seconds, (0, 1))
    ratio = ratio_in_turns(both, joint.step_seconds, options.steps)
    return {"alternate_over_joint": ratio}


def flow_benchmark(options: FlowBenchOptions, parts: tuple | None = None) -> TrainBenchmark:
    """What flow training builds from the same options, or from ``parts``: network, space, batches.

    Without ``data_path``, one random batch of the data's shape is used again and again.

    Raises:
        ValueError: options that cannot be met, or objectives that cannot be compared.
    """
    if options.compare_objectives:
        if options.batch_size * options.meanflow_ratio < 1:
            raise ValueError(
                "--compare_objectives needs a sample with an end time of its own in every batch: "
                f"raise --batch_size {options.batch_size} or --meanflow_ratio"
            )
        if options.gradient_checkpointing:
            raise ValueError("--compare_objectives: leave out --gradient_checkpointing")
        if options.direction_weight:
            raise ValueError("--compare_objectives: MeanFlow has no --direction_weight")
    network, space, batches = parts or _flow_parts(options)
    options = options.changed(compile=compiles(options, next(network.parameters()).device))
    objective = build_objective(options, network, space)
    if options.compile:
        objective.compile(options.compile_mode)
    player = build_flow_player(options, objective)
    macs = count_macs(network, *network.example_inputs(network.device))
    player.flops_per_sample = 2.0 * objective.passes * macs
    facts = {name: getattr(options, name) for name in _FLOW_FACTS}
    facts |= {"sample_shape": network.sample_shape, "num_classes": network.num_classes}
    return TrainBenchmark(FlowTask(options, space, player, batches), options, facts)


def compare_objectives(options: FlowBenchOptions) -> dict[str, float]:
    """Time and saved memory of MeanFlow over flow matching, on one network with an end time.

    The time is that of an update, in turns, and the memory what a batch's graph keeps.
    """
    mean_flow = options.changed(objective="mean_flow")  # its network takes an end time
    plain = options.changed(objective="flow_matching", meanflow_omega=1.0, meanflow_kappa=0.0)
    parts = _flow_parts(mean_flow)
    benches = [flow_benchmark(each, parts) for each in (mean_flow, plain)]
    ratio = ratio_in_turns(*(bench.step_seconds for bench in benches), options.steps)
    batch, saved = next(parts[-1]), []
    for bench in benches:
        with HeldBytes() as held, autocast(bench.device, options.mix_precision):
            graph = bench.task.players[0].objective(batch, 0)
        saved.append(held.now)
        del graph
    return {"mean_flow_over_flow_matching": ratio, "saved_memory_ratio": saved[0] / saved[1]}


def _flow_parts(options: FlowBenchOptions) -> tuple[nn.Module, FlowSpace, Iterator]:
    """The network, the flow's space and batches, from ``data_path`` or random, on the device."""
    if options.fsdp:
        raise ValueError("--fsdp shards over several processes; this times one: leave it out")
    device = use_device(options.device)
    seed_everything(options.seed)
    options = options.changed(eval_steps=0)  # no held-out data, no pictures
    if options.data_path:
        dataset, _ = build_datasets(options)
        space = open_space(options, dataset, device)
        tokenise = space.text and space.text.tokenise
        loader = TrainLoader(dataset, options.batch_size, options, device, tokenise=tokenise)
        return build_network(options, space, device), space, loader
    # What `open_space` asks of a data set, and a batch of one.
    size, side = options.batch_size, options.resolution or DEFAULT_RESOLUTION
    classes = options.num_classes if options.class_conditional else 0
    key, shape = "image", (3, side, side)
    if options.dataset in POINT_SETS:
        key, shape = "point", (2,)
    elif options.dataset == "latents":
        key, shape = "latent", tuple(options.latent_shape)
    text = {"has_captions": True, "text_facts": None}
    latents = {
        "record": {"vae": dict.fromkeys(("source", "fingerprint"))},
        "shift": [0.0],
        "scale": [1.0],
    }
    names = [str(number) for number in range(classes)]
    kind = {"data_key": key, "sample_shape": shape, "class_names": names}
    space = open_space(options, SimpleNamespace(**kind, **text, **latents), device)
    inputs = {key: torch.rand(size, *shape, device=device) * 2 - 1}
    if classes:
        inputs["label"] = torch.randint(classes, (size,), device=device)
    if space.text is not None:
        caption = "a caption of some forty characters, as many are"
        inputs["caption"] = [caption[: space.text.length]] * size
    return build_network(options, space, device), space, RandomBatches(inputs)
