"""Small networks: an MLP for points, and a few convolutions for first tries on small images."""

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


class MlpBlock(nn.Module):
    """Two layers, between which the condition scales and shifts, plus the input, (B, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(c)).chunk(2, dim=1)
        h = torch.addcmul(shift, self.fc1(F.silu(x)), 1 + scale)
        return x + self.fc2(F.silu(h))


@ModelRegistry.register("MLP")
class MLP(VelocityModel):
    """Velocities of points; the arguments are the keys of config.json.

    Every part is smooth, as average velocities are learned from derivatives.
    """

    @register_to_config
    def __init__(
        self,
        num_dims: Size = 2,
        hidden_size: Size = 256,
        depth: Depth = 3,
        num_classes: Natural = 0,
        average_velocity: bool = False,
    ):
        super().__init__()
        self.sample_shape = (num_dims,)
        self.layer_in = nn.Linear(num_dims, hidden_size)
        self.blocks = nn.ModuleList(MlpBlock(hidden_size) for _ in range(depth))
        self.layer_out = zeroed(nn.Linear(hidden_size, num_dims))
        self.add_embedders(hidden_size, TIME_SCALE)

    def predict(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        h, run = self.layer_in(x.to(self.layer_in.weight.dtype)), self.run
        for block in self.blocks:
            h = run(block, h, c)
        return self.layer_out(F.silu(h))


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
        run = self.run
        for block in self.blocks:
            h = run(block, h, c)
        return self.conv_out(F.silu(self.norm_out(h)))
