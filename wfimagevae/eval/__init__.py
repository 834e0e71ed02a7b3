"""Measuring images: metrics of pairs and of sets, their evaluation, and what it reports."""

# psnr and ssim are the names of modules here: import those functions from them.
_EXPORTS = {
    "PerceptualDistance": "lpips",
    "FrechetDistance": "set_metrics",
    "Evaluator": "evaluator",
}


def __getattr__(name: str):
    if name in _EXPORTS:
        import importlib

        return getattr(importlib.import_module(f"wfimagevae.eval.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
