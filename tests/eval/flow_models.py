"""Velocity networks without training: their samples are known in closed form."""

import torch
from torch import nn

from wfimagevae.generate.generator import FlowGenerator


class GaussianFlow(nn.Module):
    """The exact velocity from N(0, 1) to N(0, std^2) in the plane; unconditional."""

    sample_shape, num_classes, size_multiple = (2,), 0, None
    is_conditional, takes_text = False, False
    has_average_velocity, prediction, needs = False, "velocity", ()

    def __init__(self, std=0.5):
        super().__init__()
        self.std = std

    def null_condition(self, batch_size, device):
        return None

    def encode_text(self, condition):
        return condition

    def forward(self, x, t, condition=None, t_end=None):
        t = t.view(-1, 1)
        variance = (1 - t) ** 2 + (t * self.std) ** 2
        return (t * self.std**2 - (1 - t)) / variance * x


class BlobModel(GaussianFlow):
    """Images of 8 x 8 px of three classes: red, green or blue, plus a tenth of the noise.

    The null class is gray. Its velocity is that of straight lines to the colour, so that any
    number of Euler steps arrives, as does the prediction from any state.
    """

    sample_shape, num_classes, is_conditional = (3, 8, 8), 3, True

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def null_condition(self, batch_size, device):
        return torch.full((batch_size,), 3, device=device)

    def forward(self, x, t, condition=None, t_end=None):
        colours = torch.cat([torch.eye(3) * 1.4 - 0.7, torch.zeros(1, 3)])
        data = colours[condition].view(-1, 3, 1, 1)
        # x_t = (1 - t) noise + t (colour + noise / 10)
        t = t.view(-1, 1, 1, 1)
        noise = (x - t * data) / (1 - 0.9 * t)
        return self.gain * (data - 0.9 * noise)


def generator_of(model):
    """A generator of one of these, on the CPU."""
    space = "point" if len(model.sample_shape) == 1 else "pixel"
    names = ["red", "green", "blue"][: model.num_classes]
    facts = {"space": space, "objective": "flow_matching", "class_names": names}
    text = letters if model.takes_text else None
    return FlowGenerator(model, torch.device("cpu"), facts, text=text)


class WordModel(BlobModel):
    """A `BlobModel` whose class is the length of its prompt; a text is its letters, padded."""

    num_classes, takes_text, size_multiple = 0, True, 4

    def null_condition(self, batch_size, device):
        return {"ids": torch.zeros(batch_size, 5, dtype=torch.int64, device=device)}

    def forward(self, x, t, condition=None, t_end=None):
        lengths = (condition["ids"] > 0).sum(1)
        return super().forward(x, t, torch.where(lengths == 0, 3, lengths - 1))


def letters(prompts):
    """The text encoder of a `WordModel`."""
    rows = [[ord(letter) for letter in prompt] + [0] * (5 - len(prompt)) for prompt in prompts]
    return {"ids": torch.tensor(rows)}
