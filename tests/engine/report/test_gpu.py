"""GPU figures: units, silence where there is none; the peak table."""

import functools
from itertools import repeat
from unittest.mock import Mock

import pytest
import torch

from wfimagevae.engine.report.gpu import gpu_figures, peak_flops


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with 8 of 10 GiB free, whose sensors give these readings or raise these errors."""

    def install(utilization=42, power_draw=300_000, temperature=62):
        monkeypatch.setattr(torch.cuda, "utilization", Mock(side_effect=repeat(utilization)))
        monkeypatch.setattr(torch.cuda, "power_draw", Mock(side_effect=repeat(power_draw)))
        monkeypatch.setattr(torch.cuda, "temperature", Mock(side_effect=repeat(temperature)))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 10 * 2**30))
        return functools.partial(gpu_figures, torch.device("cuda", 0))

    return install


def test_a_cpu_has_no_figures():
    assert gpu_figures(torch.device("cpu")) == {}


def test_figures_have_the_stated_units(gpu):
    assert gpu()() == {
        "gpu/memory_used_mib": 2048.0,
        "gpu/utilisation": 0.42,
        "gpu/power_w": 300.0,
        "gpu/temperature_c": 62.0,
    }


def test_a_sensor_that_the_gpu_does_not_have_is_left_out(gpu, caplog):
    monitor = gpu(power_draw=RuntimeError("not supported"))
    assert monitor().keys() == {"gpu/memory_used_mib", "gpu/utilisation", "gpu/temperature_c"}
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("nvidia-ml-py"), "pip install nvidia-ml-py"),
        (OSError("no driver"), "no driver"),
    ],
)
def test_without_sensors_one_line_says_why(gpu, caplog, error, words):
    monitor = gpu(error, error, error)
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert monitor() == {"gpu/memory_used_mib": 2048.0}
    assert words in caplog.text and len(caplog.records) == 1


@pytest.mark.gpu
def test_a_real_gpu_reports_plausible_figures():
    pytest.importorskip("pynvml")
    device = torch.device("cuda", torch.cuda.current_device())
    held = torch.zeros(256 * 2**20, dtype=torch.uint8, device=device)
    figures = gpu_figures(device)
    assert figures["gpu/memory_used_mib"] >= held.numel() / 2**20
    assert 0 <= figures.get("gpu/utilisation", 0) <= 1
    assert 5 < figures.get("gpu/power_w", 100) < 3000
    assert 0 < figures.get("gpu/temperature_c", 50) < 120


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "fp16", 312),
        ("NVIDIA A100-PCIE-40GB", "fp32", 156),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "fp32", 494.7),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", 70),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("NVIDIA RTX A6000", "bf16", 154.8),
        ("NVIDIA GeForce RTX 3090", "bf16", 71),
        ("NVIDIA GeForce RTX 5090", "bf16", 209.5),
        # Other devices, and no tensor cores for the precision.
        ("cpu", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA H1000", "bf16", None),
        ("Tesla T4", "bf16", None),
        ("Tesla V100-SXM2-16GB", "fp32", None),
    ],
)
def test_known_gpus_alone_have_their_data_sheets_peak(name, precision, teraflops):
    assert peak_flops(name, precision) == (teraflops and pytest.approx(teraflops * 1e12))
