"""Pictures drawn while a step trains, one set a checkpoint, under names that never repeat."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World
from wfimagevae.engine.loop import Task
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.report.progress import log_write_errors
from wfimagevae.engine.seeding import sample_noise, stable_hash
from wfimagevae.generate.generator_files import open_latent_space
from wfimagevae.generate.subjects import Subject
from wfimagevae.pictures.pixels import from_uint8, to_uint8
from wfimagevae.pictures.writer import save_image
from wfimagevae.pipeline.checks import parse_sizes
from wfimagevae.pipeline.steps import Pipeline, Step, listed
from wfimagevae.task.flow_validation import sampling_options


class SampleDrawer:
    """Draws a step's samples; every process has one, called alike on all of them."""

    def __init__(self, pipeline: Pipeline, step: Step, options: TrainingOptions):
        output = pipeline.content.output
        self.folder, self.step, self.options = pipeline.output / "samples", step, options
        self.sizes = parse_sizes(output.sample_sizes or [step.size])
        self.images, self.prompts = listed(output.test_image_address), output.sample_captions

    def begin(self, task: Task, world: World) -> None:
        """Learns what to draw with."""
        self.task, self.ema, self.world = task, task.players[0].ema, world

    def draw(self, epoch: int, batch: int) -> None:
        """Draws the samples of a checkpoint; files that are there stay as they are."""
        raise NotImplementedError

    @contextmanager
    def _drawing(self, network: nn.Module, epoch: int, batch: int) -> Iterator[None]:
        """The network in evaluation mode, with its averaged weights where there are some."""
        self.place = f"{self.step.index + 1:03d}_{epoch:03d}_{batch:05d}"
        was_training = network.training
        network.eval()
        with self.ema.applied() if self.ema else nullcontext():
            yield
        network.train(was_training)

    def _save(self, size: tuple[int, int], subject: str, suffix: str, image: Tensor) -> None:
        """Writes it as ``<width>x<height>/<step>_<index>_<epoch>_<batch>_<hash>-<suffix>.webp``."""
        code = hashlib.md5(subject.encode()).hexdigest()[:8]
        name = f"{self.step.name}_{self.place}_{code}-{suffix}.webp"
        path = self.folder / f"{size[0]}x{size[1]}" / name
        if not path.exists():
            save_image(path, to_uint8(image.float().nan_to_num(0.0)))


class VaeSamples(SampleDrawer):
    """Images beside their reconstructions.

    Of each image and size: ``original``; ``nr``, decoded from the posterior's mean; ``ns``, from
    a sample of it.
    """

    @torch.no_grad()
    def draw(self, epoch: int, batch: int) -> None:
        """On the main process alone: nothing here waits for the others."""
        if not self.world.is_main:
            return
        vae, device = self.task.network, self.world.device
        factor = vae.spatial_factor
        with self._drawing(vae, epoch, batch):
            for subject in self.images:
                with log_write_errors(f"samples of {subject}"):
                    for size in self.sizes:
                        width, height = (max(side // factor, 1) * factor for side in size)
                        image = read_cropped(subject, (width, height)).to(device)
                        shape = (vae.config.latent_dim, height // factor, width // factor)
                        seed = stable_hash("samples", self.options.seed)
                        with autocast(device, self.options.mix_precision):
                            mean = vae(image, sample_posterior=False).sample
                            noise = sample_noise(seed, [0], shape, device)
                            drawn = vae(image, noise=noise).sample
                        for name, pixels in (("original", image), ("nr", mean), ("ns", drawn)):
                            self._save(size, subject, name, pixels[0])


class FlowSamples(SampleDrawer):
    """One picture of each prompt and size; a flow without text draws one of each size."""

    def begin(self, task: Task, world: World) -> None:
        """Takes what generates from the network in training."""
        super().begin(task, world)
        self.generator = generator = task.generator()
        if generator.decode is None and generator.facts["space"] == "latent":
            generator.decode = open_latent_space(generator.facts, world.device).decode

    @torch.no_grad()
    def draw(self, epoch: int, batch: int) -> None:
        """On all processes: the weights may be spread over them."""
        generator = self.generator
        prompts = self.prompts if generator.model.takes_text else [None]
        sampling = sampling_options(self.options)
        with self._drawing(generator.model, epoch, batch):
            for size in self.sizes:
                sides = generator.sample_size(*reversed(size))
                for index, prompt in enumerate(prompts):
                    x = generator.draw([Subject(index, prompt=prompt)], sampling, sides)
                    if not self.world.is_main:
                        continue
                    with log_write_errors(f"the sample of {prompt or ''!r}"):
                        words = re.sub(r"\W+", "_", prompt or "").strip("_")[:40]
                        suffix = words or ("prompt" if prompt else "sample")
                        self._save(size, prompt or "", suffix, generator.images(x)[0])


def read_cropped(path: str | Path, size: tuple[int, int]) -> Tensor:
    """The middle of an image at a size (width, height), in [-1, 1], (1, 3, H, W).

    Raises:
        OSError: the file is no readable image.
    """
    try:
        pixels = np.asarray(open_rgb(path))
    except UnreadableImage as error:
        raise OSError(str(error)) from None
    image = ImageOps.fit(Image.fromarray(pixels), size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)
    return from_uint8(pixels)[None].contiguous(memory_format=torch.channels_last)
