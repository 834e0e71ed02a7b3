"""GPU figures: units, the right GPU, silence where there is none; the peak table."""

import sys
from types import SimpleNamespace

import pytest
import torch

from wfimagevae.engine.report.gpu import GpuMonitor, peak_flops


class FakeNvml:
    """Stands in for pynvml: two GPUs of which CUDA sees the second; no power sensor."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, handles):
        self.handles, self.is_open = handles, False

    def nvmlInit(self):
        self.is_open = True

    def nvmlShutdown(self):
        self.is_open = False

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in self.handles:
            raise self.NVMLError(f"{uuid} not found")
        return self.handles[uuid]

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=handle * 2**30)

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=40 + handle)

    def nvmlDeviceGetPowerUsage(self, handle):
        raise self.NVMLError("not supported")

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 60 + handle


@pytest.fixture
def cuda_shows_the_second(monkeypatch):
    def install(handles):
        nvml = FakeNvml(handles)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        properties = SimpleNamespace(uuid="bbbb")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        return nvml

    return install


def test_a_cpu_has_no_figures():
    monitor = GpuMonitor(torch.device("cpu"))
    assert monitor.read() == {}
    monitor.close()


def test_figures_are_those_of_the_visible_gpu_in_the_stated_units(cuda_shows_the_second):
    nvml = cuda_shows_the_second({"GPU-aaaa": 1, "GPU-bbbb": 2})
    monitor = GpuMonitor(torch.device("cuda", 0))
    assert monitor.read() == {
        "gpu/memory_used_mib": 2048.0,
        "gpu/utilisation": 0.42,
        "gpu/temperature_c": 62.0,
    }
    monitor.close()
    assert not nvml.is_open
    assert monitor.read() == {}


def test_a_mig_slice_is_found_by_its_own_id(cuda_shows_the_second):
    cuda_shows_the_second({"MIG-bbbb": 3})
    assert GpuMonitor(torch.device("cuda", 0)).read()["gpu/memory_used_mib"] == 3072.0


def test_an_unreachable_driver_is_one_line_and_no_figures(cuda_shows_the_second, caplog):
    cuda_shows_the_second({})
    with caplog.at_level("INFO"):
        monitor = GpuMonitor(torch.device("cuda", 0))
    assert monitor.read() == {}
    assert caplog.text.count("no GPU figures") == 1


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with caplog.at_level("INFO"):
        assert GpuMonitor(torch.device("cuda", 0)).read() == {}
    assert "pip install nvidia-ml-py" in caplog.text


@pytest.mark.gpu
def test_a_real_gpu_reports_plausible_figures():
    pytest.importorskip("pynvml")
    device = torch.device("cuda", torch.cuda.current_device())
    held = torch.zeros(256 * 2**20, dtype=torch.uint8, device=device)
    figures = GpuMonitor(device).read()
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
        ("NVIDIA H200", "tf32", 494.7),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA L40S", "fp16", 362.05),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", 70),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA RTX A6000", "bf16", 154.8),
        ("NVIDIA GeForce RTX 3090", "bf16", 71),
        ("NVIDIA GeForce RTX 4090", "fp32", 82.6),
        ("NVIDIA GeForce RTX 5090", "bf16", 209.5),
    ],
)
def test_known_gpus_have_their_data_sheet_peak(name, precision, teraflops):
    assert peak_flops(name, precision) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("cpu", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),
        ("NVIDIA H1000", "bf16"),
        ("Tesla T4", "bf16"),
        ("Tesla V100-SXM2-16GB", "fp32"),
    ],
)
def test_no_peak_is_claimed_for_other_devices_or_missing_tensor_cores(name, precision):
    assert peak_flops(name, precision) is None


def test_unknown_precision_is_an_error():
    with pytest.raises(ValueError, match="int4"):
        peak_flops("NVIDIA H200", "int4")
