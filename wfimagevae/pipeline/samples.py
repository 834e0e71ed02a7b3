"""Pictures drawn while a step trains, one set a checkpoint, under names that never repeat."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World
from wfimagevae.engine.loop import Task
from wfimagevae.engine.report.progress import log_write_errors
from wfimagevae.engine.seeding import sample_noise, stable_hash
from wfimagevae.generate.generator_files import open_latent_space
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.pictures.pixels import from_uint8, to_uint8
from wfimagevae.pictures.writer import save_image
from wfimagevae.pipeline.metrics import Position

_SLUG_LENGTH = 40


@dataclass(frozen=True)
class SamplePlan:
    """What is drawn, and where it goes.

    Attributes:
        folder: Of all samples; each size has a folder in it.
        step: Name of the step.
        number: Of the step, from 1.
        subjects: Image files of a VAE, prompts of a flow.
        sizes: (width, height), in pixels.
        seed: Of what is drawn at random.
        precision: fp32, bf16 or fp16.
    """

    folder: Path
    step: str
    number: int
    subjects: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    seed: int
    precision: str

    def path(self, where: Position, size: tuple[int, int], subject: str, suffix: str) -> Path:
        """``<width>x<height>/<step>_<index>_<epoch>_<batch>_<hash>-<suffix>.webp``."""
        code = hashlib.md5(subject.encode()).hexdigest()[:8]
        place = f"{self.number:03d}_{where.epoch:03d}_{where.batch:05d}"
        name = f"{self.step}_{place}_{code}-{suffix}.webp"
        return self.folder / f"{size[0]}x{size[1]}" / name


class SampleDrawer(Protocol):
    """Draws a step's samples; every process has one, called alike on all of them."""

    def begin(self, task: Task, world: World) -> None:
        """Learns what to draw with."""

    def draw(self, where: Position) -> None:
        """Draws those of a checkpoint; files that are there stay as they are."""


class VaeSamples:
    """Images beside their reconstructions, from the average of the weights where there is one.

    Of each image and size: ``original``; ``nr``, decoded from the posterior's mean; ``ns``, from
    a sample of it.

    Args:
        plan: What to draw.
    """

    def __init__(self, plan: SamplePlan):
        self.plan = plan

    def begin(self, task: Task, world: World) -> None:
        """Takes the VAE in training."""
        self.vae, self.ema, self.world = task.vae, task.players[0].ema, world

    @torch.no_grad()
    def draw(self, where: Position) -> None:
        """On the main process alone: nothing here waits for the others."""
        if not self.world.is_main:
            return
        with _drawing(self.vae, self.ema):
            for subject in self.plan.subjects:
                with log_write_errors(f"samples of {subject}"):
                    for size in self.plan.sizes:
                        self._draw(where, subject, size)

    def _draw(self, where: Position, subject: str, size: tuple[int, int]) -> None:
        factor = self.vae.spatial_factor
        width, height = (max(side // factor, 1) * factor for side in size)
        device = self.world.device
        try:
            image = read_cropped(subject, (width, height)).to(device)
        except UnreadableImage as error:
            raise OSError(str(error)) from None
        shape = (self.vae.config.latent_dim, height // factor, width // factor)
        noise = sample_noise(stable_hash("samples", self.plan.seed), [0], shape, device)
        with autocast(device, self.plan.precision):
            mean = self.vae(image, sample_posterior=False).sample
            drawn = self.vae(image, noise=noise).sample
        for suffix, pixels in (("original", image), ("nr", mean), ("ns", drawn)):
            _save(self.plan.path(where, size, subject, suffix), pixels[0])


class FlowSamples:
    """One picture of each prompt and size, from the average of the weights where there is one.

    Args:
        plan: What to draw; a flow without text draws one picture of each size.
        sampling: How.
    """

    def __init__(self, plan: SamplePlan, sampling: SamplingOptions):
        self.plan, self.sampling = plan, sampling

    def begin(self, task: Task, world: World) -> None:
        """Takes what generates from the network in training."""
        self.generator, self.ema, self.world = task.generator, task.players[0].ema, world
        if self.generator.decode is None and self.generator.facts["space"] == "latent":
            self.generator.decode = open_latent_space(self.generator.facts, world.device).decode

    @torch.no_grad()
    def draw(self, where: Position) -> None:
        """On all processes: the weights may be spread over them."""
        prompts = self.plan.subjects if self.generator.model.takes_text else [None]
        with _drawing(self.generator.model, self.ema):
            for size in self.plan.sizes:
                for index, prompt in enumerate(prompts):
                    self._draw(where, size, index, prompt)

    def _draw(self, where: Position, size: tuple[int, int], index: int, prompt: str | None) -> None:
        sides = self.generator.sample_size(*reversed(size))
        condition = self.generator.condition(1, prompts=None if prompt is None else [prompt])
        x = self.generator.sample([index], condition, self.sampling, size=sides)
        if self.world.is_main:
            subject, suffix = prompt or "", slug(prompt) if prompt else "sample"
            with log_write_errors(f"the sample of {subject!r}"):
                image = self.generator.images(x)[0]
                _save(self.plan.path(where, size, subject, suffix), image)


def read_cropped(path: str, size: tuple[int, int]) -> Tensor:
    """The middle of an image at a size (width, height), in [-1, 1], (1, 3, H, W).

    Raises:
        UnreadableImage: the file is no readable image.
    """
    image = ImageOps.fit(
        Image.fromarray(np.asarray(open_rgb(path))), size, Image.Resampling.LANCZOS
    )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)
    return from_uint8(pixels)[None].contiguous(memory_format=torch.channels_last)


def slug(prompt: str) -> str:
    """A prompt as part of a file's name."""
    return re.sub(r"\W+", "_", prompt).strip("_")[:_SLUG_LENGTH] or "prompt"


def _save(path: Path, image: Tensor) -> None:
    if not path.exists():
        save_image(path, to_uint8(image.float().nan_to_num(0.0)))


@contextmanager
def _drawing(network: nn.Module, ema) -> Iterator[None]:
    """The network in evaluation mode, with its averaged weights."""
    was_training = network.training
    network.eval()
    with ema.applied() if ema else nullcontext():
        yield
    network.train(was_training)
