"""A few convolutions, for tests and first tries on small images."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from wfimagevae.model.config_values import Depth, Natural, Size
from wfimagevae.model.flow.normalize import GroupNorm
from wfimagevae.model.flow.unet import ResidualBlock, zeroed
from wfimagevae.model.flow.velocity_model import TIME_SCALE, VelocityModel
from wfimagevae.model.registry import ModelRegistry

_DILATIONS = (1, 2, 4)


@ModelRegistry.register("SmallCNN")
class SmallCNN(VelocityModel):
    """Velocities of small images at one resolution; the arguments are the keys of config.json.

    ``base_channels`` is the width, a multiple of 4; the blocks' dilations are 1, 2, 4, 1, 2, ...
    """

    @register_to_config
    def __init__(
        self,
        input_size: Size = 32,
        in_channels: Size = 3,
        base_channels: Size = 36,
        depth: Depth = 3,
        num_classes: Natural = 0,
        average_velocity: bool = False,
    ):
        super().__init__()
        self.sample_shape = (in_channels, input_size, input_size)
        self.conv_in = nn.Conv2d(in_channels, base_channels, 3, padding=1)
        dilations = [_DILATIONS[i % len(_DILATIONS)] for i in range(depth)]
        self.blocks = nn.ModuleList(
            ResidualBlock(*[base_channels] * 3, dilation=dilation) for dilation in dilations
        )
        self.norm_out = GroupNorm(base_channels)
        self.conv_out = zeroed(nn.Conv2d(base_channels, in_channels, 3, padding=1))
        self.add_embedders(base_channels, TIME_SCALE)
        self.to(memory_format=torch.channels_last)

    def predict(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        h = self.conv_in(x.to(self.conv_in.weight.dtype, memory_format=torch.channels_last))
        for block in self.blocks:
            h = self.run(block, h, c)
        return self.conv_out(F.silu(self.norm_out(h)))
