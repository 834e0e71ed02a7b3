"""Building blocks of the autoencoders."""

import importlib

_EXPORTS = {
    "AttnBlock2D": "attention",
    "DiagonalGaussian": "posterior",
    "Downsample": "updownsample",
    "HaarWaveletTransform2D": "wavelet",
    "InverseHaarWaveletTransform2D": "wavelet",
    "ResnetBlock2D": "resnet_block",
    "Upsample": "updownsample",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
