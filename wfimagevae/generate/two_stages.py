"""A small image of a text, and then the large one: GLIDE's two models, one behind the other."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from wfimagevae.generate.generator import FlowGenerator, Size
from wfimagevae.generate.options import SamplingOptions, UpsamplerOptions
from wfimagevae.pictures.pixels import from_uint8, to_uint8


class TwoStageGenerator(FlowGenerator):
    """Draws with a base model, then enlarges by an upsampler that is told the same text.

    The upsampler sees the small image as a file would hold it, in 8 bits; it is not guided, and
    starts from noise that is a little too small, as public samples do.

    Source: Nichol et al. 2021 (GLIDE), arXiv:2112.10741, and its public code.
    """

    def __init__(self, base: FlowGenerator, upsampler: FlowGenerator, options: UpsamplerOptions):
        for stage, is_upsampler in ((base, False), (upsampler, True)):
            if ("low_res" in stage.model.needs) != is_upsampler:
                path, kind = stage.source.get("path"), "upsampler" if is_upsampler else "base model"
                raise ValueError(
                    f"{path} is no {kind}: --from_pretrained BASE --upsampler UPSAMPLER"
                )
        small, large = (stage.pixel_size(None)[0] for stage in (base, upsampler))
        parts = base.model, base.device, base.facts, base.decode, base.text
        super().__init__(*parts, base.downsampling * large // small, base.precision)
        self.source, self.given, self.upsampler = base.source, base.given, upsampler
        self.second = options
        self._second_stage(0)  # what it cannot follow is told now

    def _second_stage(self, seed: int) -> SamplingOptions:
        sampler, steps = self.second.upsampler_sampler, self.second.upsampler_steps
        options = SamplingOptions(sampler=sampler, timestep_respacing=steps, seed=seed)
        return self.upsampler.resolve(options)

    @torch.no_grad()
    def draw(self, subjects, options, size=None, progress=None, noise=None) -> Tensor:
        """Large samples of some subjects; ``size``, ``progress`` and ``noise`` are the base's."""
        upsampler = self.upsampler
        self._move(self, upsampler)
        small = super().images(super().draw(subjects, options, size, progress, noise))
        condition = upsampler.condition(subjects) | {"low_res": from_uint8(to_uint8(small))}
        indices = [subject.index for subject in subjects]
        large = size and tuple(n // upsampler.downsampling for n in self.pixel_size(size))
        start = upsampler.noise(indices, options.seed, size=large)
        start = start * self.second.upsampler_temperature
        self._move(upsampler, self)
        second = self._second_stage(options.seed)
        return upsampler.sample(indices, condition, second, noise=start, size=large)

    def images(self, x: Tensor) -> Tensor:
        return self.upsampler.images(x)

    def describe(self, options: SamplingOptions, size: Size | None = None) -> dict[str, Any]:
        """As the base's, and how the second stage draws."""
        names = ("upsampler_sampler", "upsampler_steps", "upsampler_temperature")
        second = {name: getattr(self.second, name) for name in names}
        return super().describe(options, size) | {"second_stage": second}

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model, self.upsampler.model]

    def fingerprint(self) -> str:
        """SHA-256 of what stands for the weights of both."""
        both = super().fingerprint() + self.upsampler.fingerprint()
        return hashlib.sha256(both.encode()).hexdigest()

    def _move(self, to_device: FlowGenerator, away: FlowGenerator) -> None:
        """Makes one stage ready, and with ``offload`` the other one's memory free."""
        if self.second.offload:
            away.model.to("cpu")
            to_device.model.to(self.device)
