"""Which device to run on, and how precisely."""

import contextlib
import ctypes
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.utils._triton import has_triton

from wfimagevae.engine.options import TrainingOptions

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
_log = logging.getLogger("wfimagevae")


def use_device(name: str, local_rank: int = 0) -> torch.device:
    """The device for ``auto``, ``cuda``, ``cuda:N``, ``mps`` or ``cpu``; ValueError if absent.

    ``auto`` takes CUDA, else Apple's MPS, else the CPU. A bare ``cuda`` is that of this process's
    number on its machine, ``local_rank``. One of CUDA becomes the current one, with TF32 and
    cudnn.benchmark; for the CPU, the process keeps memory that it frees.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; use auto, cuda, cuda:N, mps or cpu") from None
    if device.type not in ("cuda", "cpu", "mps"):
        raise ValueError(f"unsupported device {name!r}; use auto, cuda, cuda:N, mps or cpu")
    if device.type == "mps" and not has_mps:
        raise ValueError("device 'mps' asked for, but this PyTorch has no MPS; use --device cpu")
    if device.type == "cpu" and sys.platform == "linux":
        # Freed memory stays with the process, in blocks of up to 32 MiB: by default glibc gives it
        # back, and the kernel clears its pages anew at every step, up to an eighth of its time.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)  # other libraries have none
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD
        mallopt(-1, -1)  # M_TRIM_THRESHOLD
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = local_rank if device.index is None else device.index
    if index >= count:
        raise ValueError(
            f"device cuda:{index} asked for, but {count} CUDA devices are visible; "
            "start fewer processes, or use --device cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    _log.info("TF32 and cudnn.benchmark are on")
    return device


def multiply_in_fp8(
    blocks: Iterable[nn.Module], device: torch.device, precision: str, emulate: bool = False
) -> int:
    """Lets linear layers multiply in FP8, in place, scaled tensor by tensor; returns how many.

    Those whose sides are not multiples of 16, which the kernels want, stay as they are. Inputs and
    weights are e4m3, gradients e5m2; parameters keep their names and types. ``emulate`` rounds to
    FP8 and multiplies as before, on any device.

    Source: Micikevicius et al. 2022, arXiv:2209.05433; by torchao.
    """
    if not emulate:
        here = device.type
        if here == "cuda":
            here = torch.cuda.get_device_name(device)
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
            raise ValueError(f"--fp8 needs a GPU that has it, as H100 or RTX 4090; this is {here}")
    if precision != "bf16":
        raise ValueError(f"--fp8 goes with --mix_precision bf16, not {precision}")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise ValueError("--fp8 needs a package: pip install torchao") from None
    fits = lambda layer, _: layer.in_features % 16 == layer.out_features % 16 == 0  # noqa: E731
    config, blocks = Float8LinearConfig(emulate=emulate), list(blocks)
    for block in blocks:
        convert_to_float8_training(block, module_filter_fn=fits, config=config)
    layers = (layer for block in blocks for layer in block.modules())
    return sum(type(layer).__name__ == "Float8Linear" for layer in layers)


def library_versions() -> str:
    gpu = "MPS" if torch.backends.mps.is_built() else "CPU only"
    if torch.version.hip:
        gpu = f"HIP {torch.version.hip}"
    elif torch.version.cuda:
        cudnn = torch.backends.cudnn.version() or 0  # 92400 is 9.24.0
        numbers = cudnn // 10000, cudnn // 100 % 100, cudnn % 100
        gpu = f"CUDA {torch.version.cuda}, cuDNN {'.'.join(map(str, numbers))}"
    return f"torch {torch.__version__}, {gpu}"


def autocast(device: torch.device, precision: str):
    """Mixed-precision context: ``fp32`` runs as is, ``bf16`` and ``fp16`` under autocast."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; use one of {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return contextlib.nullcontext()
    # Weights that a pass without gradients left in autocast's cache serve the next one: before
    # PyTorch 2.11 without gradients of their own; since then by a cast outside of the block that
    # FSDP2 watches, so that it reduces gradients before they arrive. Casting anew costs nothing.
    return torch.autocast(device.type, dtype=PRECISIONS[precision], cache_enabled=False)


def compiles(options: TrainingOptions, device: torch.device) -> bool:
    """Whether networks are compiled: as the options say, by themselves on CUDA with Triton.

    Raises:
        ValueError: CUDA graphs where gradients are accumulated.
    """
    on_cuda, mode = device.type == "cuda", options.compile_mode
    on = on_cuda and has_triton() if options.compile is None else options.compile
    if on and on_cuda and mode in _CUDA_GRAPHS and options.grad_accum_steps > 1:
        raise ValueError(
            f"--compile_mode {mode} runs CUDA graphs, whose next run overwrites the gradients that "
            f"--grad_accum_steps {options.grad_accum_steps} adds up: use default or "
            "max-autotune-no-cudagraphs, or --grad_accum_steps 1"
        )
    return on


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small CPU tensor on ``device``; through pinned memory, so that nothing waits for CUDA."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def placed(networks: Sequence[torch.nn.Module], device: torch.device | str) -> Iterator[None]:
    """While it lasts, networks are on this device; then each is back where it was."""
    before = [next(network.parameters()).device for network in networks]
    for network in networks:
        network.to(device)
    try:
        yield
    finally:
        for network, place in zip(networks, before, strict=True):
            network.to(place)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was asked; for timing only."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
