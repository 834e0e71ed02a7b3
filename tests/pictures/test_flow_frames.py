"""Pictures of flows show what the numbers say."""

import math

import numpy as np
import pytest
import torch
from matplotlib.colors import rgb_to_hsv

from tests.refusals import refused
from wfimagevae.pictures.flow_frames import direction_colours, field_frames, path_frames

DATA = torch.tensor([[1.0, 1.0]])
LIMIT = 3.3  # of the plane that is shown: it takes in data and noise


def hues(picture, square, saturation=0.8):
    """Hues of the saturated pixels of a part of the plane: (left, right, low, high) in units."""
    size = picture.width
    left, right = (int(size * (0.07 + 0.9 * (x / LIMIT + 1) / 2)) for x in square[:2])
    # The axes are as wide as high after set_aspect, in the middle of their box.
    middle = size * (1 - 0.05 - 0.44)
    low, high = (int(middle - y / LIMIT * 0.44 * size) for y in square[2:])
    hsv = rgb_to_hsv(np.asarray(picture)[high:low, left:right] / 255)
    return hsv[hsv[..., 1] > saturation][:, 0]


def test_hue_is_the_angle_whatever_the_length():
    expected = [0.0, 0.25, 0.5, 0.75, 0.9]
    angles = torch.tensor(expected) * 2 * math.pi
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    for scale in (1e-3, 1.0, 50.0):
        found = rgb_to_hsv(direction_colours(scale * vectors))[:, 0]
        assert found == pytest.approx(expected, abs=1e-5)


def test_field_is_drawn_in_the_colours_of_its_directions():
    """Everything flows to the right in the left half, up in the right half; later, left."""

    def velocity(x, t):
        early = torch.where(x[:, :1] < 0, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        return early if t < 0.5 else torch.tensor([-1.0, 0.0]).expand_as(x)

    first, last = field_frames(velocity, [0.0, 1.0], DATA)
    for frame, square, hue in (
        (first, (-2.5, -0.5, -2, 2), 0.0),
        (first, (0.5, 2.5, -2, 2), 0.25),
        (last, (-2.5, 2.5, -2, 2), 0.5),
    ):
        found = hues(frame, square)
        assert len(found) > 100
        assert np.median(np.minimum(abs(found - hue), 1 - abs(found - hue))) < 0.02


def test_fields_and_paths_that_make_no_picture_are_refused():
    with pytest.raises(ValueError, match="field is not finite"):
        list(field_frames(lambda x, t: x if t < 0.2 else x / 0, [0.0, 0.5], DATA))
    refused("not finite", list, path_frames(torch.full((1, 5, 2), torch.nan), [0], DATA))


def test_particles_move_from_their_start_to_their_end():
    start = torch.tensor([[-2.0, -2.0], [-2.0, 2.0]])
    paths = torch.stack([start, start + torch.tensor([4.0, 0.0])])  # both to the right: red
    first, last = path_frames(paths, [0.0, 1.0], DATA)
    for frame, here, there in ((first, -2, 2), (last, 2, -2)):
        for y in (-2, 2):
            assert len(hues(frame, (here - 0.3, here + 0.3, y - 0.3, y + 0.3))) > 8
        assert len(hues(frame, (there - 0.3, there + 0.3, -0.5, 0.5))) == 0
    between = (-1.5, 1.5, -2.3, -1.7)
    assert len(hues(last, between, 0.2)) > 100 and len(hues(first, between, 0.2)) == 0
    far = torch.tensor([[[20.0, 0.0]], [[18.0, 0.0]]])
    frame, _ = path_frames(far, [0.0, 1.0], far[0])  # the plane takes in distant data
    assert len(hues(frame, (2.5, LIMIT, -1, 1))) > 0
