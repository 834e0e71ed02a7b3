"""Validation of a flow in training: held-out loss, distance of its samples, pictures of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from wfimagevae.dataset import batch_loader
from wfimagevae.dataset.loader import Batches
from wfimagevae.dataset.protocol import TrainData
from wfimagevae.diffusion.guidance import Condition
from wfimagevae.diffusion.sampler import GAUSSIAN_SAMPLERS, SAMPLERS
from wfimagevae.engine.device import autocast, placed
from wfimagevae.engine.distributed import World, all_reduce_sum, broadcast_object
from wfimagevae.engine.interrupt import Pulse
from wfimagevae.engine.report.progress import log_write_errors
from wfimagevae.eval.clip_score import clip_scores
from wfimagevae.eval.evaluator import gather_rows
from wfimagevae.eval.features import Extractor, load_inception
from wfimagevae.eval.set_metrics import energy_distance, frechet_distance
from wfimagevae.generate.generated_files import SamplePicture
from wfimagevae.generate.generator import FlowGenerator, Progress
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject, read_prompts
from wfimagevae.model.clip import load_clip
from wfimagevae.objective.flow_matching import FlowMatching
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.task.flow_options import FlowOptions

_EVALUATIONS = {n: sampler.evaluations for n, sampler in (SAMPLERS | GAUSSIAN_SAMPLERS).items()}


class FlowValidator:
    """Judges a flow by held-out data, with the weights that it has. Collective.

    Args:
        options: Sampler, guidance, how many samples.
        objective: What is trained; its loss is evaluated at held-out data.
        generator: Draws samples from the same network.
        held_out: Data that training does not see.
        world: This process and the others.
        folder: Folder of the run, for pictures.
        shown: Draws the samples of pictures, if more than the network in training does.

    Raises:
        ValueError: a sampler or guidance that this model cannot follow, too few samples, or prompts
            or a CLIP network that are not there.
    """

    def __init__(
        self,
        options: FlowOptions,
        objective: FlowMatching,
        generator: FlowGenerator,
        held_out: TrainData,
        world: World,
        folder: Path,
        shown: FlowGenerator | None = None,
    ):
        self.shown = shown or generator
        self.options, self.objective, self.generator = options, objective, generator
        self.held_out, self.world, self.folder = held_out, world, folder
        self.sampling = sampling_options(options)
        generator.resolve(self.sampling)
        if options.fsdp and not _EVALUATIONS[options.sampler]:
            raise ValueError(
                f"--sampler {options.sampler} calls the network as often as each sample needs, a "
                "sharded one (--fsdp) is called by all processes alike: validate with heun or euler"
            )
        num_samples = min(options.eval_num_samples, len(held_out))
        if num_samples < 2:
            raise ValueError(
                "validation compares at least 2 samples with held-out data: raise "
                f"--eval_num_samples {options.eval_num_samples}, or give more than "
                f"{len(held_out)} held-out sample(s)"
            )
        # Pictures show the prompts asked for, or different captions of held-out data, with their
        # classes where the flow has classes; without text there is nothing to choose.
        prompts, file = list(options.sample_prompts or ()), options.prompt_file
        prompts += [prompt.text for prompt in read_prompts(file, "--prompt_file")] if file else []
        self.subjects = [Subject(0, prompt=prompt) for prompt in prompts]
        if options.text_encoder and not self.subjects:
            count = max(round(options.eval_num_images**0.5), 1)
            batch = held_out.read_batch(list(range(min(4 * count, len(held_out)))))
            captions, has_classes = batch["caption"], generator.model.num_classes
            labels = batch["label"].tolist() if has_classes else [None] * len(captions)
            labels = dict(zip(captions, labels, strict=True))
            labels.pop("", None)
            self.subjects = [Subject(0, label, text) for text, label in labels.items()][:count]
        if options.eval_clip_model and self.shown.model.needs:
            raise ValueError("--eval_clip_model scores what prompts alone draw: give --base_model")
        try:
            self.clip = load_clip(options.eval_clip_model) if options.eval_clip_model else None
        except ValueError as error:
            raise ValueError(str(error).replace("--clip_model", "--eval_clip_model")) from error
        self.inception: Extractor | None = None
        self.real_features: Tensor | None = None
        if options.eval_fid:
            if generator.facts["space"] == "point":
                raise ValueError("--eval_fid is for images, and these are points")
            self.inception = load_inception(world.device, options.inception_weights)
        # Shares of equal length: a sharded network is called by all processes or none.
        share = -(-num_samples // world.size)
        mine = range(world.rank, share * world.size, world.size)
        size = options.eval_batch_size
        self._shares = [list(mine[i : i + size]) for i in range(0, len(mine), size)]

    @torch.no_grad()
    def __call__(
        self, prefix: str, step: int, pulse: Pulse, draw: bool
    ) -> tuple[dict[str, float], dict[str, Path]]:
        """Figures named ``PREFIX/...``, with those of samples if it may draw; pictures."""
        self.pulse = pulse
        self.pictures: dict[str, Path] = {}
        network, device = self.objective.network, self.world.device
        network.eval()  # the run puts it back
        # The loss, or the error where a loss weighs errors until all are about 1; and what the
        # samples are compared with.
        totals = torch.zeros(2, dtype=torch.float32, device=device)
        real, conditions = [], []
        batches = batch_loader(self.held_out, self._shares)
        ready = partial(batches.ready, 1)
        for number, positions in enumerate(self._shares):
            self.pulse(ready, "validation batch", number, len(self._shares))
            batch = next(batches)
            del batch["position"]
            batch = self.held_out.to_inputs(batch, device) | {"position": positions}
            with autocast(device, self.generator.precision):
                loss, logs = self.objective(batch, step)
            name = "error" if "train/error" in logs else "loss"
            loss = logs.get("train/error", loss)
            totals += torch.stack([loss * len(positions), torch.ones_like(loss) * len(positions)])
            if draw:
                real.append(self.objective.encode(batch).float().cpu())
                is_conditional = self.generator.model.is_conditional
                conditions.append(self.objective.condition(batch) if is_conditional else None)
        self.pulse()
        total, count = all_reduce_sum(totals).tolist()
        values = {name: total / count}
        if draw:
            sampling = self.sampling
            values |= self._distances(sampling, real, conditions)
            if network.has_average_velocity:
                one = sampling.changed(sampler="mean_flow", steps=1)
                distances = self._distances(one, real, conditions)
                values |= {f"{name}_one_step": value for name, value in distances.items()}
                self._draw(one, step, "one-step")
            if self.clip:
                values["clip_score"] = self._clip_score(sampling)
            self._draw(sampling, step, sampling.sampler)
        return {f"{prefix}/{name}": value for name, value in values.items()}, self.pictures

    def _distances(
        self, sampling: SamplingOptions, real: list[Tensor], conditions: list[Condition | None]
    ) -> dict[str, float]:
        """Energy distance of samples to held-out data, with its classes and texts; FID if asked.

        Infinite where samples are not finite, as they may be in low precision.
        """
        generated, count = [], len(self._shares)
        for number, (positions, condition) in enumerate(zip(self._shares, conditions, strict=True)):
            progress = self._steps(sampling, f"samples {number + 1}/{count}, step")
            x = self.generator.sample(positions, condition, sampling, progress)
            generated.append(x.cpu())
        self.pulse()
        rows, features = (gather_rows(real), gather_rows(generated)), ()
        if not rows[1].isfinite().all():
            names = ["energy_distance", "fid"] if self.inception else ["energy_distance"]
            return dict.fromkeys(names, math.inf)
        if self.inception:
            if self.real_features is None:  # the same at every validation
                self.real_features = self._features(real)
            features = self.real_features, self._features(generated)

        def judge(_: list[int]) -> dict:
            if not self.world.is_main:
                return {"values": None}
            fid = {"fid": frechet_distance(*features)} if features else {}
            return {"values": {"energy_distance": energy_distance(*rows)} | fid}

        # By a thread: of thousands of samples it takes longer than a signal may wait.
        work = Batches(judge, lambda number: [[0]][number:])
        self.pulse(partial(work.ready, 1))
        # One process's figures for all: they must agree on which checkpoint is the best.
        return broadcast_object(next(work)["values"])

    def _features(self, samples: list[Tensor]) -> Tensor:
        """What Inception sees in the samples of all processes, decoded if need be, (N, F)."""
        features = []
        for part in samples:
            images = self.generator.images(part.to(self.world.device))
            features.append(self.inception(to_uint8(images)).cpu())
            self.pulse()
        return gather_rows(features)

    def _clip_score(self, sampling: SamplingOptions) -> float:
        """Mean CLIP score of a sample of each prompt; values that overflowed count as gray."""
        # Shares of equal length, of which what is drawn for the second time does not count.
        world, size, count = self.world, self.options.eval_batch_size, len(self.subjects)
        mine, pixels = range(world.rank, -(-count // world.size) * world.size, world.size), []
        subjects = [replace(self.subjects[n % count], index=n) for n in mine]
        for first in range(0, len(subjects), size):
            progress = self._steps(sampling, f"CLIP samples {first + 1}/{len(subjects)}, step")
            x = self.shown.draw(subjects[first : first + size], sampling, progress=progress)
            pixels.append(to_uint8(self.shown.images(x.nan_to_num(0.0, 0.0, 0.0))).cpu())
        self.pulse()
        with placed([self.clip.network], world.device):
            prompts = [subject.prompt for subject in subjects]
            scores = clip_scores(self.clip, torch.cat(pixels), prompts, size)
        self.pulse()
        return gather_rows([scores[[n < count for n in mine]]]).mean().item()

    def _steps(self, sampling: SamplingOptions, what: str) -> Progress | None:
        """What a sampler calls after each of its steps, if all processes make as many."""
        if not _EVALUATIONS[sampling.sampler]:
            return None
        return lambda step, num_steps, x: self.pulse(None, what, step, num_steps)

    def _draw(self, sampling: SamplingOptions, step: int, name: str) -> None:
        """A picture of samples, one row a prompt or class."""
        if not self.options.eval_num_images:
            return
        # Every process takes part: the weights may be spread over all of them.
        save = self.picture(sampling, self._steps(sampling, "sample picture, step"))
        if not self.world.is_main:
            return
        path = self.folder / "val_samples" / f"step-{step:08d}-{name}.png"
        with log_write_errors(f"sample picture {path.name}"):
            save(path)
            self.pictures[f"samples/{name}"] = path

    def picture(self, sampling: SamplingOptions, progress: Progress | None) -> Callable:
        """Draws the samples of a picture, and gives what writes it to a path. Collective."""
        sizes = self.options.eval_num_images, self.options.eval_batch_size
        return SamplePicture(self.shown, sampling, *sizes, self.subjects, progress).save


def sampling_options(options: FlowOptions) -> SamplingOptions:
    """How samples are drawn while training."""
    return SamplingOptions(
        sampler=options.sampler,
        steps=options.sampling_steps,
        guidance_scale=options.guidance_scale,
        seed=options.seed,
    )
