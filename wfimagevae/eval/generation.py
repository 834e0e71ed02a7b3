"""From a trained flow to samples: each depends on its own seed alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from wfimagevae.diffusion.guidance import Guidance, GuidedVelocity, guided_velocity
from wfimagevae.diffusion.sampler import get_sampler
from wfimagevae.diffusion.sampler.dopri5 import load_odeint
from wfimagevae.diffusion.timesteps import time_grid
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World
from wfimagevae.engine.seeding import sample_noise, stable_hash


@dataclass(frozen=True)
class SamplingOptions:
    """How samples are drawn.

    Attributes:
        sampler: A name of `SAMPLERS`.
        steps: Of the sampler.
        guidance: Classifier-free guidance.
        shift: Above 1 spends more steps near the noise.
        seed: Of all samples; sample i's noise follows (seed, i).
        precision: ``fp32``, ``bf16`` or ``fp16`` arithmetic of the network.
    """

    sampler: str = "heun"
    steps: int = 25
    guidance: Guidance = field(default_factory=Guidance)
    shift: float = 1.0
    seed: int = 0
    precision: str = "fp32"


class FlowGenerator:
    """Draws samples from a velocity network and shows them as images.

    Args:
        model: The network, on ``device``.
        device: Where it runs.
        facts: What training recorded: ``space`` (pixel, latent or point), ``objective``,
            ``class_names``, ...
        decode: From the model's space to images in [-1, 1]; None where it works on pixels.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        facts: dict,
        decode: Callable[[Tensor], Tensor] | None = None,
    ):
        self.model, self.device, self.facts, self.decode = model, device, facts, decode

    @property
    def record(self) -> dict:
        """The facts that a protocol keeps."""
        return {name: fact for name, fact in self.facts.items() if name != "class_names"}

    def class_name(self, number: int) -> str:
        """Name of a class; its number where training recorded no names."""
        names = self.facts.get("class_names") or []
        return names[number] if number < len(names) else str(number)

    def check(self, options: SamplingOptions) -> None:
        """Raises ValueError for options that this model cannot meet."""
        model, sampler = self.model, get_sampler(options.sampler)
        time_grid(options.steps, options.shift)
        if model.prediction == "epsilon":
            raise ValueError(
                "this model predicts epsilon on 1000 discrete steps, as public DiT "
                "files do; these samplers integrate a velocity. Train on from it "
                "(--pretrained_model_name_or_path), or use a SiT file"
            )
        if sampler.needs_average_velocity and not model.has_average_velocity:
            raise ValueError(
                f"sampler {options.sampler!r} needs a model trained with --objective mean_flow; "
                "this one knows no end time. Use heun, euler or dpmpp"
            )
        if options.guidance.scale != 1 and not model.num_classes:
            raise ValueError(
                f"guidance scale {options.guidance.scale} asked of an unconditional model; use 1"
            )
        if options.guidance.scale != 1 and self.facts.get("cfg_dropout_prob") == 0:
            raise ValueError(
                f"guidance scale {options.guidance.scale} asked of a model that never learned the "
                "null class (--cfg_dropout_prob 0); use 1"
            )
        if sampler.name == "dopri5":
            load_odeint()

    @torch.no_grad()
    def sample(
        self,
        indices: list[int],
        labels: Tensor | None,
        options: SamplingOptions,
        progress: Callable[[int, int, Tensor], None] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Samples in the model's space.

        Args:
            indices: Number of each sample; equal numbers give equal samples, in any batch, on
                any rank.
            labels: Class of each, int64 (B,); None for an unconditional model, or for the null
                class.
            options: How.
            progress: Called as ``progress(step, num_steps, x)`` after each step.
            noise: Where to start, (B, *model.sample_shape); None is each sample's own.

        Returns:
            float32, (B, *model.sample_shape).

        Raises:
            ValueError: options or labels that do not fit the model.
        """
        velocity = self.velocity(labels, options, len(indices))
        noise = self.noise(indices, options.seed) if noise is None else noise

        def draw(step: int) -> Tensor:
            return self.noise(indices, options.seed, step)

        was_training = self.model.training
        self.model.eval()
        with autocast(self.device, options.precision):
            x = get_sampler(options.sampler).function(
                velocity,
                noise,
                time_grid(options.steps, options.shift),
                draw=draw,
                progress=progress,
            )
        self.model.train(was_training)
        return x

    def velocity(
        self, labels: Tensor | None, options: SamplingOptions, count: int
    ) -> GuidedVelocity:
        """The guided velocity of ``count`` samples, as samplers call it.

        Raises:
            ValueError: options or labels that do not fit the model.
        """
        self.check(options)
        null = self.model.null_condition(count, self.device)
        condition = null if labels is None else self._checked(labels, count)
        return guided_velocity(self.model, condition, null, options.guidance)

    def noise(self, indices: Sequence[int], seed: int, step: int = 0) -> Tensor:
        """Each sample's standard normal noise, (B, *model.sample_shape), for a step's draw.

        Drawn on the CPU: a seed means the same picture on every device.
        """
        shape, cpu = self.model.sample_shape, torch.device("cpu")
        return sample_noise(stable_hash("sample", seed, step), list(indices), shape, cpu).to(
            self.device
        )

    @torch.no_grad()
    def images(self, x: Tensor) -> Tensor:
        """Samples as images in [-1, 1], float32 (B, 3, H, W).

        Raises:
            ValueError: samples, or what they decode to, are not finite.
        """
        if not x.isfinite().all():
            raise ValueError("samples are not finite; try fp32 or bf16, or more steps")
        images = x if self.decode is None else self.decode(x)
        return images.float().clamp(-1, 1)

    def _checked(self, labels: Tensor, count: int) -> Tensor:
        num_classes = self.model.num_classes
        if not num_classes:
            raise ValueError("class labels asked of an unconditional model")
        if labels.shape != (count,):
            raise ValueError(f"{count} labels are needed, got {tuple(labels.shape)}")
        low, high = labels.min().item(), labels.max().item()
        if low < 0 or high >= num_classes:
            bad = low if low < 0 else high
            raise ValueError(f"label {bad} is out of range: this model has {num_classes} classes")
        return labels.to(self.device)


def sample_batches(
    generator: FlowGenerator,
    labels: Tensor | None,
    count: int,
    options: SamplingOptions,
    batch_size: int,
    here: World,
) -> Iterator[tuple[list[int], Tensor]]:
    """This process's share of samples 0 to count - 1, with a progress bar on the main one.

    Args:
        generator: Draws them.
        labels: Of all samples, (count,); None for an unconditional model.
        count: Samples over all processes.
        options: How.
        batch_size: Samples at a time.
        here: This process and the others.

    Yields:
        Numbers of samples, and the samples in the model's space.
    """
    mine = range(here.rank, count, here.size)
    with tqdm(total=len(mine), unit="img", desc="sample", disable=not here.is_main) as bar:
        for first in range(0, len(mine), batch_size):
            indices = list(mine[first : first + batch_size])
            chosen = None if labels is None else labels[indices]
            yield indices, generator.sample(indices, chosen, options)
            bar.update(len(indices))


def class_numbers(generator: FlowGenerator, wanted: Sequence[str] | None) -> list[int]:
    """Numbers of classes given by number or name; all of them for None; none if unconditional.

    Raises:
        ValueError: an unknown class, or one asked of an unconditional model.
    """
    num_classes, names = generator.model.num_classes, generator.facts.get("class_names") or []
    if wanted is None:
        return list(range(num_classes))
    if not num_classes:
        raise ValueError(f"classes {', '.join(wanted)} asked of an unconditional model")
    numbers = []
    for text in wanted:
        number = names.index(text) if text in names else int(text) if text.isdecimal() else -1
        if not 0 <= number < num_classes:
            told = f": {', '.join(names[:20])}" if names else ""
            raise ValueError(
                f"no class {text!r}; this model has {num_classes}, 0 to {num_classes - 1}{told}"
            )
        numbers.append(number)
    return numbers


def labels_in_turn(classes: list[int], count: int) -> Tensor | None:
    """Sample i's class is ``classes[i % len(classes)]``; None without classes."""
    return torch.tensor([classes[i % len(classes)] for i in range(count)]) if classes else None
