"""The Haar transform against what is known of it: exact, orthonormal, four named bands."""

import pytest
import torch

from wfimagevae.model.modules.wavelet import (
    HaarWaveletTransform2D,
    InverseHaarWaveletTransform2D,
    haar,
    inverse_haar,
)

ONES = torch.ones(4, 6)
ROWS = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None] * ONES
COLUMNS = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]) * ONES


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inverse_restores_the_image_exactly(dtype):
    x = torch.randint(-16, 17, (2, 3, 6, 10)).to(dtype)
    coeffs = HaarWaveletTransform2D()(x)
    assert coeffs.dtype == dtype
    assert torch.equal(InverseHaarWaveletTransform2D()(coeffs), x)
    # Any image to rounding; energy is preserved.
    x = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    torch.testing.assert_close(inverse_haar(haar(x)), x, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(haar(x).square().sum(), x.square().sum())  # of equal energy


@pytest.mark.parametrize(
    ("image", "band"), [(ONES, 0), (ROWS, 1), (COLUMNS, 2), (ROWS * COLUMNS, 3)]
)
def test_each_pattern_falls_into_its_band(image, band):
    colours = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    coeffs = haar(image * colours).view(4, 3, 2, 3)  # band-major
    expected = torch.zeros(4, 3, 2, 3)
    expected[band] = 2.0 * colours[0]
    assert torch.equal(coeffs, expected)


@pytest.mark.parametrize(
    ("function", "transpose", "shape"),
    [(haar, inverse_haar, (2, 3, 8, 10)), (inverse_haar, haar, (2, 12, 4, 5))],
)
def test_the_gradient_of_each_is_the_other(function, transpose, shape):
    x = torch.randn(shape, requires_grad=True)
    y = function(x)
    upstream = torch.randn(y.shape)
    torch.testing.assert_close(torch.autograd.grad(y, x, upstream)[0], transpose(upstream))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_are_channels_last(layout):
    coeffs = haar(torch.randn(2, 3, 8, 12).contiguous(memory_format=layout))
    assert coeffs.is_contiguous(memory_format=torch.channels_last)
    x = inverse_haar(coeffs.contiguous(memory_format=layout))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_odd_sizes_and_missing_bands_are_refused():
    with pytest.raises(ValueError, match=r"even height and width, got \(5, 4\)"):
        haar(torch.zeros(1, 3, 5, 4))
    with pytest.raises(ValueError, match="got 6 channels"):
        inverse_haar(torch.zeros(1, 6, 4, 4))
