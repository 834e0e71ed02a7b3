"""Wavelet image autoencoders: train, reconstruct, evaluate, export."""

import importlib
import sys
from importlib.util import find_spec

if find_spec("torch") is None:
    raise ModuleNotFoundError(
        f"{sys.executable} has no PyTorch: activate the environment that holds it, as `source "
        ".venv/bin/activate` after `make install`, or pip install -r requirements.txt"
    )
__version__ = "0.1.0"

_EXPORTS = {
    "ImageBaseAE": "wfimagevae.model.modeling_aebase",
    "ModelRegistry": "wfimagevae.model.registry",
    "WFVAE2ImageModel": "wfimagevae.model.vae.modeling_wfvae2_image",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name in _EXPORTS:  # on first use: importing torch and diffusers takes five seconds
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
