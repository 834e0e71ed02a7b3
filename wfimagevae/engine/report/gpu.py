"""What the GPU is doing, and what it could do at best (for MFU)."""

import functools
import logging
import re

import torch

_log = logging.getLogger(__name__)

# Name as the driver gives it, without maker and memory size -> (bf16, fp16, TF32), TFLOP/s.
_PEAKS: dict[str, tuple[float | None, float | None, float | None]] = {
    r"B300": (2250, 2250, 1125),
    r"GB200": (2500, 2500, 1250),
    r"B200": (2250, 2250, 1100),
    r"GH200": (989.4, 989.4, 494.7),
    r"H200 NVL": (835.5, 835.5, 417.5),
    r"H200": (989.4, 989.4, 494.7),
    r"H20": (148, 148, 74),
    r"H[18]00 PCIe": (756, 756, 378),
    r"H100 NVL": (835.5, 835.5, 417.5),
    r"H[18]00": (989.4, 989.4, 494.7),
    r"A[18]00(?:-SXM4?|-PCIE)?": (312, 312, 156),
    r"A40": (149.7, 149.7, 74.8),
    r"A30": (165, 165, 82),
    r"A10G": (70, 70, 35),
    r"A10": (125, 125, 62.5),
    r"L40S": (362.05, 362.05, 183),
    r"L40": (181.05, 181.05, 90.5),
    r"L4": (121, 121, 60),
    r"V100S-PCIE": (None, 130, None),
    r"V100-SXM[23]": (None, 125, None),
    r"V100-PCIE": (None, 112, None),
    r"T4": (None, 65, None),
    r"RTX PRO 6000 Blackwell (?:Workstation|Server) Edition": (503.8, 503.8, 251.9),
    r"RTX 6000 Ada Generation": (364.2, 364.2, 182.1),
    r"RTX A6000": (154.8, 154.8, 77.4),
    r"RTX A5000": (111.1, 111.1, 55.6),
    r"RTX 5090": (209.5, 209.5, 104.8),
    r"RTX 5080": (112.6, 112.6, 56.3),
    r"RTX 4090": (165.2, 165.2, 82.6),
    r"RTX 4080": (97.5, 97.5, 48.7),
    r"RTX 3090 Ti": (80, 80, 40),
    r"RTX 3090": (71, 71, 35.6),
}
_COLUMNS = ("bf16", "fp16", "fp32")


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense tensor-core peak in FLOP/s of a known GPU, the denominator of MFU.

    Without sparsity, accumulating in float32; fp32 means TF32, which `use_device` turns
    on. None for a GPU that is not in the table (laptop chips and MIG slices are slower than their
    namesakes, so not either), or one without tensor cores for this precision.

    Source: NVIDIA data sheets of the products, half of the figure where only that with sparsity is
    given; GeForce and RTX cards: the GA102, Ada, Blackwell architecture white papers, rows "with
    FP32 accumulate". A10G: AWS's description of G5 instances.
    """
    name = re.sub(r"^NVIDIA |Tesla |GeForce ", "", device_name.strip())
    for pattern, peaks in _PEAKS.items():
        if re.fullmatch(rf"{pattern}(?:[ -]\d+GB)?(?: PCIe| HBM\d\w?)?", name):
            peak = peaks[_COLUMNS.index(precision)]
            return None if peak is None else peak * 1e12
    return None


def gpu_figures(device: torch.device) -> dict[str, float]:
    """Current figures of a whole GPU, other processes included; those that it reports of:

    ``gpu/memory_used_mib``, ``gpu/utilisation`` (0 to 1, share of time with a kernel running),
    ``gpu/power_w``, ``gpu/temperature_c``; none of another device. The sensors are read through
    nvidia-ml-py (AMD's through amdsmi). Where it is missing or the driver refuses, one line says so
    and only the memory is left.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    figures = {"gpu/memory_used_mib": (total - free) / 2**20}
    sensors = {
        "gpu/utilisation": (torch.cuda.utilization, 100),
        "gpu/power_w": (torch.cuda.power_draw, 1 if torch.version.hip else 1000),
        "gpu/temperature_c": (torch.cuda.temperature, 1),
    }
    for name, (sensor, unit) in sensors.items():
        try:
            figures[name] = sensor(device) / unit
        except Exception as error:  # each library has its own; none is worth a training run
            missing = isinstance(error, ImportError) and not torch.version.hip
            problem = "pip install nvidia-ml-py" if missing else str(error)
    if len(figures) == 1:
        _tell(problem)
    return figures


@functools.cache
def _tell(problem: str) -> None:
    _log.info("only the memory of GPU figures is in the log: %s", problem)
