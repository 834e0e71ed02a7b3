"""MLP for the velocities of points."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from wfimagevae.model.config_values import Depth, Natural, Size
from wfimagevae.model.flow.unet import zeroed
from wfimagevae.model.flow.velocity_model import TIME_SCALE, VelocityModel
from wfimagevae.model.registry import ModelRegistry


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
        h = self.layer_in(x.to(self.layer_in.weight.dtype))
        for block in self.blocks:
            h = self.run(block, h, c)
        return self.layer_out(F.silu(h))
