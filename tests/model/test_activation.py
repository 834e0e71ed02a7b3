"""Activations: the cubic against Bernstein polynomials, and models that are built with each."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import BPoly

from tests.model.test_wfvae2_image import ROOT, tiny_model
from wfimagevae.model.modules.blocks import BezierActivation, cubic_bezier
from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel


def test_the_curve_is_scipys_bernstein_polynomial_at_each_place():
    values = torch.randn(2, 5 * 3, 4, 5, dtype=torch.float64)
    got = cubic_bezier(values).numpy()
    t, *points = values.view(2, 5, 3, 4, 5).numpy().swapaxes(0, 1)
    t = 1 / (1 + np.exp(-t))
    for place in np.ndindex(t.shape):
        curve = BPoly(np.array([[p[place]] for p in points]), [0, 1])
        assert got[place] == pytest.approx(float(curve(t[place])), rel=1e-12)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="five values a channel expected, got 12"):
        cubic_bezier(torch.zeros(1, 12, 2, 2))


def test_all_five_values_come_from_the_input_of_the_same_pixel():
    activation, x = BezierActivation(6).double(), torch.randn(1, 6, 3, 3, dtype=torch.float64)
    y = activation(x)
    parts = activation.project.weight.view(5, 6, 6)
    values = torch.einsum("koc,bchw->bkohw", parts, x).flatten(1, 2)
    torch.testing.assert_close(y, cubic_bezier(values))
    assert torch.autograd.gradcheck(activation, x.requires_grad_())


def test_the_curve_starts_about_as_large_as_silu():
    torch.manual_seed(0)
    x = torch.randn(4, 256, 8, 8)
    ratio = BezierActivation(256)(x).square().mean() / F.silu(x).square().mean()
    assert 0.7 < ratio < 1.4


def test_names_and_sizes_stay_where_there_are_no_curves():
    plain = tiny_model()
    relu, bezier = tiny_model(activation="relu"), tiny_model(activation="bezier")
    assert list(plain.state_dict()) == list(relu.state_dict())
    assert relu.config.activation == "relu"
    x = torch.rand(1, 3, 16, 16)
    first, second = (m(x, sample_posterior=False).sample for m in (plain, relu))
    assert not torch.allclose(first, second)  # equal weights, another activation
    extra = bezier.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() <= bezier.state_dict().keys()
    assert all(".project." in key for key in extra)
    # Two in each residual block, and the encoder's last.
    blocks = sum(name.endswith("conv1") for name, _ in plain.named_modules())
    assert len(extra) == 2 * (2 * blocks + 1)


def test_the_examples_to_compare_have_as_many_parameters():
    def size(name):
        with torch.device("meta"):
            model = WFVAE2ImageModel.from_config(ROOT / "examples" / name)
        return sum(p.numel() for p in model.parameters())

    bezier = "wfvae2-image-1024-bezier.json"
    assert json.loads((ROOT / "examples" / bezier).read_text())["activation"] == "bezier"
    assert size(bezier) == pytest.approx(size("wfvae2-image-1024.json"), rel=0.01)
