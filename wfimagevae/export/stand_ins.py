"""What the code in an export has in place of parts that serve trainings and command lines alone."""

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin


class ModelRegistry:
    """Registers nothing: names are for who has the package."""

    @staticmethod
    def register(name: str):
        return lambda network: network


class Options:
    """Values of the fields that a class has, with their defaults."""

    def __init__(self, **given):
        if unknown := given.keys() - vars(type(self)).keys():
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        vars(self).update(given)

    def changed(self, **changes):
        return type(self)(**(vars(self) | changes))


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
