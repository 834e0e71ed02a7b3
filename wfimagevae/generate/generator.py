"""From a trained network to samples, each of its own seed alone, and the states on the way."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from wfimagevae.diffusion.gaussian import GaussianDiffusion
from wfimagevae.diffusion.guidance import Condition, GuidedVelocity
from wfimagevae.diffusion.path import time_grid
from wfimagevae.diffusion.sampler import GAUSSIAN_SAMPLERS, SAMPLERS
from wfimagevae.diffusion.sampler.grid import Velocity
from wfimagevae.engine.device import autocast
from wfimagevae.engine.seeding import sample_noise, stable_hash
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject
from wfimagevae.model.weight_files import weights_fingerprint

_MAX_KEPT_PROMPTS = 64
_NEEDED_BY = {
    "low_res": "it enlarges images; name it as --upsampler of a base model",
    "inpaint_image": "it fills in images; give --inpaint_image FILE --inpaint_mask FILE",
    "inpaint_mask": "it fills in images; give --inpaint_mask FILE",
}
GUIDANCE = ("scale", "interval", "rescale", "channels")
DISCRETE = ("timestep_respacing", "eta", "clip")  # options of models at discrete times
Size = tuple[int, int]
# progress(step, num_steps, x), after each step of a sampler.
Progress = Callable[[int, int, Tensor], None]


class FlowGenerator:
    """Draws samples from a network and shows them as images.

    A network that predicts velocities is followed from time 0 to 1, one that predicts the noise at
    discrete times (GLIDE, a public DiT) from its last timestep to 0.

    Args:
        facts: What training recorded: ``space`` (pixel, latent or point), ``objective``,
            ``class_names``, ...
        decode: From the model's space to images in [-1, 1]; None where it works on pixels.
        text: The encoder of a model that takes text: prompts to a dict of tensors, batch first.
        downsampling: Pixels of an image along the side of one value of a sample.
        precision: ``fp32``, ``bf16`` or ``fp16`` arithmetic of the network.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        facts: dict,
        decode: Callable[[Tensor], Tensor] | None = None,
        text: Callable[[Sequence[str]], dict[str, Tensor]] | None = None,
        downsampling: int = 1,
        precision: str = "fp32",
    ):
        self.model, self.device, self.facts, self.decode = model, device, facts, decode
        self.text, self.downsampling, self.precision = text, downsampling, precision
        # Parts of every condition, (1, ...), such as an image to fill in.
        self.given: dict[str, Tensor] = {}
        self.source: dict = {}  # where it was read from, for records: ``path``, ``step``, ...
        self.diffusion: GaussianDiffusion | None = None
        if model.prediction == "epsilon":
            keys = {"schedule": "linear", "num_train_steps": 1000} | model.config
            self.diffusion = GaussianDiffusion(keys["schedule"], keys["num_train_steps"])
        self._encode_one = lru_cache(_MAX_KEPT_PROMPTS)(lambda prompt: self.text([prompt]))

    @property
    def record(self) -> dict:
        """The facts that a protocol keeps."""
        return {name: fact for name, fact in self.facts.items() if name != "class_names"}

    @property
    def networks(self) -> list[nn.Module]:
        """All that draws."""
        return [self.model]

    def fingerprint(self) -> str:
        """SHA-256 of the network's weights."""
        return weights_fingerprint(self.model)

    def class_name(self, number: int) -> str:
        """Name of a class, or its number where training recorded no names."""
        names = self.facts.get("class_names") or []
        return names[number] if number < len(names) else str(number)

    def class_numbers(self, labels: Sequence[str] | None) -> list[int]:
        """Numbers of classes given by number or name; None is all of them, if there are any."""
        num_classes, names = self.model.num_classes, self.facts.get("class_names") or []
        if labels is None:
            return list(range(num_classes))
        if not num_classes:
            raise ValueError(f"classes {', '.join(labels)} asked of a model without classes")
        numbers = []
        for text in labels:
            number = names.index(text) if text in names else int(text) if text.isdecimal() else -1
            if not 0 <= number < num_classes:
                choices = f": {', '.join(names[:20])}" if names else ""
                last = num_classes - 1
                raise ValueError(
                    f"no class {text!r}; this model has {num_classes}, 0 to {last}{choices}"
                )
            numbers.append(number)
        return numbers

    def title(self, subject: Subject) -> str:
        """A sample's prompt or the name of its class; empty where it has neither."""
        if subject.prompt is not None:
            return subject.prompt or "(no prompt)"
        return "" if subject.label is None else self.class_name(subject.label)

    def resolve(self, options: SamplingOptions) -> SamplingOptions:
        """The options with what suits the model for None; ValueError if it cannot meet them."""
        sampler, steps, model = options.sampler, options.steps, self.model
        usual, known, others = ("heun", 25), SAMPLERS, "heun, euler or dpmpp"
        if self.diffusion:
            usual, known, others = ("ddim", 30), GAUSSIAN_SAMPLERS, "ddim, plms or dpmpp_2m"
        if sampler is None:
            sampler = "mean_flow" if self.facts["objective"] == "mean_flow" else usual[0]
        if steps is None:
            steps = 1 if sampler == "mean_flow" else usual[1]
        if sampler not in known:
            kind = "noise at discrete times" if self.diffusion else "velocities"
            raise ValueError(f"sampler {sampler!r}: this model predicts {kind}; use {others}")
        if options.eta and sampler != "ddim":
            raise ValueError(f"eta {options.eta:g} is ddim's, not for sampler {sampler!r}")
        # Numbers out of range say so themselves.
        if self.diffusion:
            steps = len(self.diffusion.grid(options.timestep_respacing or steps)) - 1
        elif options.timestep_respacing or options.eta or options.clip:
            raise ValueError(
                "timestep_respacing, eta and clip are of models at discrete times, such as GLIDE; "
                "this one predicts velocities: leave them out"
            )
        if sampler == "plms" and steps < 3:
            raise ValueError(f"plms needs at least 3 steps, got {steps}")
        low, high = options.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"the guidance interval must be in [0, 1], low first, got {low, high}")
        # What the network cannot do, whatever the numbers.
        needs_end = not self.diffusion and SAMPLERS[sampler].needs_average_velocity
        if needs_end and not model.has_average_velocity:
            raise ValueError(
                f"sampler {sampler!r} needs a model trained with --objective mean_flow; "
                "this one knows no end time. Use heun, euler or dpmpp"
            )
        scale, what = options.guidance_scale, ""
        if not model.is_conditional:
            what = "an unconditional model"
        elif self.facts.get("cfg_dropout_prob") == 0:
            what = "a model that never learned the null condition (--cfg_dropout_prob 0)"
        if scale != 1 and what:
            raise ValueError(f"guidance scale {scale} asked of {what}; use 1")
        if options.negative_prompt and not model.takes_text:
            raise ValueError(
                f"negative prompt {options.negative_prompt!r} asked of a model without text"
            )
        return options.changed(sampler=sampler, steps=steps)

    def describe(self, options: SamplingOptions, size: Size | None = None) -> dict[str, Any]:
        """How samples are drawn, for records."""
        return {
            "sampler": options.sampler,
            "steps": options.steps,
            "guidance": _guidance(options),
            "shift": options.time_shift,
            "seed": options.seed,
            "precision": self.precision,
            "negative_prompt": options.negative_prompt,
            "size": size,
            **({name: getattr(options, name) for name in DISCRETE} if self.diffusion else {}),
        }

    @torch.no_grad()
    def sample(
        self,
        indices: list[int],
        condition: Condition | None,
        options: SamplingOptions,
        progress: Progress | None = None,
        noise: Tensor | None = None,
        size: Size | None = None,
    ) -> Tensor:
        """Samples in the model's space, (B, *model.sample_shape), or of another height and width.

        Equal indices give equal samples, in any batch, on any rank. They show a ``condition`` as
        `condition` gives it, None is the null one, and start from ``noise``, None is their own;
        ``progress(step, num_steps, x)`` is called after each step. Options or a size, see
        `sample_size`, that do not fit the model are a ValueError.
        """
        options = self.resolve(options)

        def draw(step: int) -> Tensor:
            return self.noise(indices, options.seed, step, size)

        # In evaluation mode, whatever a training that validates is in.
        noise = draw(0) if noise is None else noise
        was_training = self.model.training
        self.model.eval()
        with autocast(self.device, self.precision):
            velocity = self.velocity(condition, options, len(indices))
            places, settings = time_grid(options.steps, options.time_shift), {}
            if self.diffusion:
                places = self.diffusion.grid(options.timestep_respacing or options.steps)
                is_pixel = self.facts["space"] == "pixel"
                settings = {"clip": options.clip or ("static" if is_pixel else "none")}
                settings |= {"eta": options.eta} if options.eta else {}
            sampler = (GAUSSIAN_SAMPLERS if self.diffusion else SAMPLERS)[options.sampler]
            x = sampler(velocity, noise, places, draw=draw, progress=progress, **settings)
        if "inpaint_mask" in self.model.needs:  # what is known stays as it is
            known = condition["inpaint_mask"]
            x = known * condition["inpaint_image"] + (1 - known) * x
        self.model.train(was_training)
        return x

    def velocity(
        self, condition: Condition | None, options: SamplingOptions, count: int
    ) -> GuidedVelocity:
        """The guided velocity, or noise, of ``count`` samples, as samplers call it.

        Texts are read by the network once, here, and not at every step.
        """
        model, guidance = self.model, _guidance(options)
        null = model.null_condition(count, self.device)
        condition = null if condition is None else condition
        if missing := [part for part in model.needs if part not in condition]:
            raise ValueError(f"this model needs more than a text: {_NEEDED_BY[missing[0]]}")
        if options.negative_prompt:
            null = null | self._encode([options.negative_prompt] * count)
        if isinstance(condition, dict):  # what has no null, such as an image to enlarge, stays
            null = model.encode_text(condition | null) if options.guidance_scale != 1 else None
            condition = model.encode_text(condition)
        if self.diffusion:  # whose last timestep is noise
            low, high = options.guidance_interval
            last = self.diffusion.num_steps - 1
            guidance["interval"] = (last * (1 - high), last * (1 - low))
        return GuidedVelocity(model, condition, null, **guidance)

    def condition(self, subjects: Sequence[Subject]) -> Condition | None:
        """What the network is told of some samples, all of which have a class, or none.

        Each prompt is encoded by itself, so that the others of a batch change nothing; "" is that
        of a sample without. Raises ValueError for classes or prompts that do not fit the model.
        """
        # What is not given stays as the null condition has it.
        model = self.model
        condition = model.null_condition(len(subjects), self.device)
        labels = [subject.label for subject in subjects if subject.label is not None]
        if bad := [label for label in labels if not 0 <= label < model.num_classes]:
            raise ValueError(f"no class {bad[0]}: this model has {model.num_classes} classes")
        prompts = [subject.prompt for subject in subjects]
        if not model.takes_text and (asked := [text for text in prompts if text is not None]):
            raise ValueError(f"prompt {asked[0]!r} asked of a model that takes no text")
        if labels:
            tensor = torch.tensor(labels, device=self.device)
            condition = condition | {"label": tensor} if model.takes_text else tensor
        if not model.takes_text:
            return condition
        given = {n: x.expand(len(subjects), *x.shape[1:]) for n, x in self.given.items()}
        return condition | given | self._encode(prompts)

    def draw(
        self,
        subjects: Sequence[Subject],
        options: SamplingOptions,
        size: Size | None = None,
        progress: Progress | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Samples of some subjects, in one batch; see `sample`."""
        indices = [subject.index for subject in subjects]
        return self.sample(indices, self.condition(subjects), options, progress, noise, size)

    def sample_size(self, height: int | None, width: int | None) -> Size | None:
        """Height and width of samples for images of so many pixels; None is the model's own size.

        Raises ValueError for a size that the model cannot make.
        """
        if height is None and width is None:
            return None
        usual = self.pixel_size(None)
        sides = (usual[0] if height is None else height, usual[1] if width is None else width)
        step = self.downsampling * (self.model.size_multiple or 1)
        is_fixed = self.model.size_multiple is None and sides != usual
        if is_fixed or any(side % step or side < step for side in sides):
            others = "; models with position 'rope' take others"
            raise ValueError(
                f"images of {sides[0]} x {sides[1]} pixels asked of a model that makes "
                f"{usual[0]} x {usual[1]}{others if is_fixed else f', or multiples of {step}'}"
            )
        return sides[0] // self.downsampling, sides[1] // self.downsampling

    def pixel_size(self, size: Size | None) -> Size:
        """Height and width of the images of samples of a size; None is the model's own."""
        height, width = size or self.model.sample_shape[1:]
        return height * self.downsampling, width * self.downsampling

    def noise(
        self, indices: Sequence[int], seed: int, step: int = 0, size: Size | None = None
    ) -> Tensor:
        """Each sample's standard normal noise, (B, *model.sample_shape), for a step's draw.

        Drawn on the CPU: a seed means the same picture on every device.
        """
        shape, cpu = self.model.sample_shape, torch.device("cpu")
        shape = shape if size is None else (shape[0], *size)
        noise = sample_noise(stable_hash("sample", seed, step), list(indices), shape, cpu)
        return noise.to(self.device)

    @torch.no_grad()
    def images(self, x: Tensor) -> Tensor:
        """Samples as images in [-1, 1], float32 (B, 3, H, W); ValueError if not finite."""
        if not x.isfinite().all():
            raise ValueError("samples are not finite; try fp32 or bf16, or more steps")
        images = x if self.decode is None else self.decode(x)
        return images.float().clamp(-1, 1)

    def _encode(self, prompts: Sequence[str | None]) -> dict[str, Tensor]:
        """Tokens, masks and pooled states of prompts, batch first; the latest are kept."""
        parts = [self._encode_one(prompt or "") for prompt in prompts]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _guidance(options: SamplingOptions) -> dict[str, Any]:
    """Guidance as `GuidedVelocity` takes it, and records keep it."""
    return {name: getattr(options, f"guidance_{name}") for name in GUIDANCE}


def sampling_velocity(
    generator: FlowGenerator, subjects: Sequence[Subject], options: SamplingOptions
) -> Velocity:
    """The velocity that samples follow, without gradients."""
    guided = generator.velocity(generator.condition(subjects), options, len(subjects))

    @torch.no_grad()
    def velocity(x: Tensor, t: Tensor, t_end: Tensor | None = None) -> Tensor:
        with autocast(generator.device, generator.precision):
            return guided(x.to(generator.device), t, t_end)

    return velocity


def draw_states(
    generator: FlowGenerator, subjects: Sequence[Subject], options: SamplingOptions
) -> tuple[Tensor, Tensor]:
    """Every state of some samples on their way.

    Gives times (T,), float64, from 0 to 1, and states (T, B, ...) on the CPU, T = steps + 1.
    """
    options = generator.resolve(options)
    if generator.diffusion:
        raise ValueError("this model predicts noise at discrete times: its way has no velocities")
    noise = generator.noise([subject.index for subject in subjects], options.seed)
    states = [noise.cpu()]
    keep = lambda step, num_steps, x: states.append(x.cpu())  # noqa: E731
    generator.draw(subjects, options, progress=keep, noise=noise)
    return time_grid(options.steps, options.time_shift), torch.stack(states)


def predicted_ends(
    velocity: Velocity, times: Tensor, states: Tensor, is_average: bool = False
) -> Tensor:
    """Where each state would arrive on a straight line: x_t + (1 - t) v(x_t, t), on the CPU.

    With ``is_average``, by the average velocity from t to 1, as one step of MeanFlow goes. Times
    are (T,), states and ends (T, B, ...).
    """
    ends = []
    for t, x in zip(times, states, strict=True):
        if t < 1:
            end = (torch.ones_like(t),) if is_average else ()
            x = x + (1 - float(t)) * velocity(x, t, *end).cpu()
        ends.append(x)
    return torch.stack(ends)


def interpolate(
    generator: FlowGenerator, subjects: Sequence[Subject], options: SamplingOptions, num_places: int
) -> Tensor:
    """Samples of noises between those of samples i and B + i, which show the same.

    Gives samples in the model's space, (num_places, B, ...), on the CPU; the first and the last are
    those of the two noises.
    """
    count = len(subjects)
    a = generator.noise(range(count), options.seed)
    b = generator.noise(range(count, 2 * count), options.seed)
    # On a quarter of a circle what lies between two independent normal noises is normal, too.
    angles = torch.linspace(0, math.pi / 2, num_places, dtype=torch.float64).tolist()
    between = [math.cos(angle) * a + math.sin(angle) * b for angle in angles]
    return torch.stack([generator.draw(subjects, options, noise=x).cpu() for x in between])
