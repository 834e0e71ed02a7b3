"""From a trained flow to samples: each depends on its own seed alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from wfimagevae.diffusion.guidance import Condition, Guidance, GuidedVelocity, guided_velocity
from wfimagevae.diffusion.sampler import get_sampler
from wfimagevae.diffusion.sampler.dopri5 import load_odeint
from wfimagevae.diffusion.timesteps import time_grid
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World
from wfimagevae.engine.seeding import sample_noise, stable_hash
from wfimagevae.generate.subjects import Subject

_KEPT_PROMPTS = 64


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
        negative_prompt: Takes the null condition's place in guidance; "" leaves it.
        size: Height and width of samples in the model's space, for models that take others than
            their own, which is None; `FlowGenerator.sample_size` finds it for images.
    """

    sampler: str = "heun"
    steps: int = 25
    guidance: Guidance = field(default_factory=Guidance)
    shift: float = 1.0
    seed: int = 0
    precision: str = "fp32"
    negative_prompt: str = ""
    size: tuple[int, int] | None = None


class FlowGenerator:
    """Draws samples from a velocity network and shows them as images.

    Args:
        model: The network, on ``device``.
        device: Where it runs.
        facts: What training recorded: ``space`` (pixel, latent or point), ``objective``,
            ``class_names``, ...
        decode: From the model's space to images in [-1, 1]; None where it works on pixels.
        text: The encoder of a model that takes text: prompts to a dict of tensors, batch first.
        downsampling: Pixels of an image along the side of one value of a sample.

    Attributes:
        source: Where it was read from, for records: ``path``, ``step``, ...
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        facts: dict,
        decode: Callable[[Tensor], Tensor] | None = None,
        text: Callable[[Sequence[str]], dict[str, Tensor]] | None = None,
        downsampling: int = 1,
    ):
        self.model, self.device, self.facts, self.decode = model, device, facts, decode
        self.text, self.downsampling = text, downsampling
        self.source: dict = {}
        self._encoded: dict[str, dict[str, Tensor]] = {}

    @property
    def record(self) -> dict:
        """The facts that a protocol keeps."""
        return {name: fact for name, fact in self.facts.items() if name != "class_names"}

    def class_name(self, number: int) -> str:
        """Name of a class; its number where training recorded no names."""
        names = self.facts.get("class_names") or []
        return names[number] if number < len(names) else str(number)

    def title(self, subject: Subject) -> str:
        """A sample's prompt or the name of its class; nothing of what shows neither."""
        if subject.prompt is not None:
            return subject.prompt or "(no prompt)"
        return "" if subject.label is None else self.class_name(subject.label)

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
        if options.guidance.scale != 1 and not model.is_conditional:
            raise ValueError(
                f"guidance scale {options.guidance.scale} asked of an unconditional model; use 1"
            )
        if options.guidance.scale != 1 and self.facts.get("cfg_dropout_prob") == 0:
            raise ValueError(
                f"guidance scale {options.guidance.scale} asked of a model that never learned the "
                "null condition (--cfg_dropout_prob 0); use 1"
            )
        if options.negative_prompt and not model.takes_text:
            raise ValueError(
                f"negative prompt {options.negative_prompt!r} asked of a model without text"
            )
        if options.size is not None and options.size != tuple(model.sample_shape[1:]):
            self._check_size(options.size)
        if sampler.name == "dopri5":
            load_odeint()

    @torch.no_grad()
    def sample(
        self,
        indices: list[int],
        condition: Condition | None,
        options: SamplingOptions,
        progress: Callable[[int, int, Tensor], None] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Samples in the model's space.

        Args:
            indices: Number of each sample; equal numbers give equal samples, in any batch, on
                any rank.
            condition: What they show, as `condition` gives it, or classes alone, int64 (B,); None
                for an unconditional model, or for the null condition.
            options: How.
            progress: Called as ``progress(step, num_steps, x)`` after each step.
            noise: Where to start, (B, *model.sample_shape); None is each sample's own.

        Returns:
            float32, (B, *model.sample_shape), or of ``options.size``.

        Raises:
            ValueError: options or a condition that do not fit the model.
        """
        velocity = self.velocity(condition, options, len(indices))

        def draw(step: int) -> Tensor:
            return self.noise(indices, options.seed, step, options.size)

        noise = draw(0) if noise is None else noise

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
        self, condition: Condition | None, options: SamplingOptions, count: int
    ) -> GuidedVelocity:
        """The guided velocity of ``count`` samples, as samplers call it.

        Raises:
            ValueError: options or a condition that do not fit the model.
        """
        self.check(options)
        if isinstance(condition, Tensor):
            condition = self.condition(count, condition)
        null = self.condition(count)
        condition = null if condition is None else condition
        if options.negative_prompt:
            null = self.condition(count, prompts=[options.negative_prompt] * count)
        return guided_velocity(self.model, condition, null, options.guidance)

    def condition(
        self, count: int, labels: Tensor | None = None, prompts: Sequence[str] | None = None
    ) -> Condition | None:
        """What the network is told of ``count`` samples.

        Each prompt is encoded by itself, so that the others of a batch change nothing.

        Args:
            count: B.
            labels: Classes, int64 (B,); None is no class.
            prompts: B texts, "" of a sample without; None is no text.

        Raises:
            ValueError: labels or prompts that do not fit the model.
        """
        condition = self.model.null_condition(count, self.device)
        if labels is not None:
            labels = self._checked(labels, count)
            condition = condition | {"label": labels} if self.model.takes_text else labels
        if prompts is None:
            return condition
        if not self.model.takes_text:
            raise ValueError(f"prompt {prompts[0]!r} asked of a model that takes no text")
        if len(prompts) != count:
            raise ValueError(f"{count} prompts are needed, got {len(prompts)}")
        parts = [self._encode(prompt) for prompt in prompts]
        return condition | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def condition_of(self, subjects: Sequence[Subject]) -> Condition | None:
        """What the network is told of some samples, all of which have a class, or none."""
        labels = [subject.label for subject in subjects if subject.label is not None]
        prompts = [subject.prompt or "" for subject in subjects] if self.model.takes_text else None
        return self.condition(len(subjects), torch.tensor(labels) if labels else None, prompts)

    def sample_size(self, height: int | None, width: int | None) -> tuple[int, int] | None:
        """Height and width of samples for images of so many pixels; None is the model's own size.

        Args:
            height: In pixels; None is the model's own.
            width: Likewise.

        Raises:
            ValueError: a size that the model cannot make.
        """
        if height is None and width is None:
            return None
        own = [side * self.downsampling for side in self.model.sample_shape[1:]]
        wanted = [own[0] if height is None else height, own[1] if width is None else width]
        step = self.downsampling * (self.model.size_multiple or 1)
        if any(side % step or side < step for side in wanted):
            raise ValueError(
                f"images of {wanted[0]} x {wanted[1]} pixels asked of a model whose sides are "
                f"multiples of {step}"
            )
        size = wanted[0] // self.downsampling, wanted[1] // self.downsampling
        if wanted != own:
            self._check_size(size)
        return size

    def noise(
        self, indices: Sequence[int], seed: int, step: int = 0, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Each sample's standard normal noise, (B, *model.sample_shape), for a step's draw.

        Drawn on the CPU: a seed means the same picture on every device.
        """
        shape, cpu = self.model.sample_shape, torch.device("cpu")
        shape = shape if size is None else (shape[0], *size)
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

    def _encode(self, prompt: str) -> dict[str, Tensor]:
        """What the text encoder makes of one prompt, batch first; the latest are kept."""
        if prompt not in self._encoded:
            while len(self._encoded) >= _KEPT_PROMPTS:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[prompt] = self.text([prompt])
        return self._encoded[prompt]

    def _check_size(self, size: tuple[int, int]) -> None:
        multiple = self.model.size_multiple
        if multiple is None or any(side % multiple for side in size):
            own = " x ".join(str(side) for side in self.model.sample_shape[1:])
            told = "no others" if multiple is None else f"multiples of {multiple}"
            raise ValueError(
                f"samples of {size[0]} x {size[1]} asked of a {type(self.model).__name__} that "
                f"makes {own} and {told}; models with position 'rope' take other sizes"
            )

    def _checked(self, labels: Tensor, count: int) -> Tensor:
        num_classes = self.model.num_classes
        if not num_classes:
            raise ValueError("class labels asked of a model without classes")
        if labels.shape != (count,):
            raise ValueError(f"{count} labels are needed, got {tuple(labels.shape)}")
        low, high = labels.min().item(), labels.max().item()
        if low < 0 or high >= num_classes:
            bad = low if low < 0 else high
            raise ValueError(f"label {bad} is out of range: this model has {num_classes} classes")
        return labels.to(self.device)


def sample_batches(
    generator: FlowGenerator,
    subjects: Sequence[Subject],
    options: SamplingOptions,
    batch_size: int,
    here: World,
) -> Iterator[tuple[list[int], Tensor]]:
    """This process's share of some samples, with a progress bar on the main one.

    Args:
        generator: Draws them.
        subjects: The samples of all processes.
        options: How.
        batch_size: Samples at a time.
        here: This process and the others.

    Yields:
        Places in ``subjects``, and the samples in the model's space.
    """
    mine = range(here.rank, len(subjects), here.size)
    with tqdm(total=len(mine), unit="img", desc="sample", disable=not here.is_main) as bar:
        for first in range(0, len(mine), batch_size):
            places = list(mine[first : first + batch_size])
            yield places, draw_subjects(generator, [subjects[i] for i in places], options)
            bar.update(len(places))


def draw_subjects(
    generator: FlowGenerator, subjects: Sequence[Subject], options: SamplingOptions
) -> Tensor:
    """Samples in the model's space, float32 (B, ...), in one batch."""
    indices = [subject.index for subject in subjects]
    return generator.sample(indices, generator.condition_of(subjects), options)


def class_numbers(generator: FlowGenerator, wanted: Sequence[str] | None) -> list[int]:
    """Numbers of classes given by number or name; all of them for None; none if there are none.

    Raises:
        ValueError: an unknown class, or one asked of a model without classes.
    """
    num_classes, names = generator.model.num_classes, generator.facts.get("class_names") or []
    if wanted is None:
        return list(range(num_classes))
    if not num_classes:
        raise ValueError(f"classes {', '.join(wanted)} asked of a model without classes")
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
