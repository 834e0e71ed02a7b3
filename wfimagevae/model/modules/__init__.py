"""Building blocks of the autoencoders."""

from wfimagevae.model.modeling_aebase import DiagonalGaussian
from wfimagevae.model.modules.blocks import AttnBlock2D, Downsample, ResnetBlock2D, Upsample
from wfimagevae.model.modules.wavelet import HaarWaveletTransform2D, InverseHaarWaveletTransform2D

__all__ = [
    "AttnBlock2D",
    "DiagonalGaussian",
    "Downsample",
    "HaarWaveletTransform2D",
    "InverseHaarWaveletTransform2D",
    "ResnetBlock2D",
    "Upsample",
]
