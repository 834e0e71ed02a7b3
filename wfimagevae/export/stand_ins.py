"""What the code in an export has in place of parts that serve trainings and command lines alone."""

from dataclasses import dataclass, replace

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin


class RegisteredModel(ModelMixin, ConfigMixin):
    """A network that its config.json describes completely."""

    config_name = "config.json"
    _supports_gradient_checkpointing = True

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """As diffusers', without a word about keys that are there for others to read."""
        known = cls._get_init_keys(cls)
        own = {k: v for k, v in config_dict.items() if k in known or k.startswith("_")}
        return super().extract_init_dict(own, **kwargs)


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample; None is what suits the model."""

    sampler: str | None = None
    steps: int | None = None
    timestep_respacing: str | None = None
    eta: float = 0.0
    clip: str | None = None
    guidance_scale: float = 1.0
    negative_prompt: str = ""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    guidance_channels: int | None = None
    time_shift: float = 1.0
    seed: int = 0

    def changed(self, **changes) -> "SamplingOptions":
        return replace(self, **changes)
