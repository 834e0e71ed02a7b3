import subprocess
import sys

import pytest
import torch
from torch import nn

from wfimagevae.engine.device import compiles, library_versions, multiply_in_fp8
from wfimagevae.engine.options import TrainingOptions


def test_networks_are_compiled_as_asked_and_by_themselves_on_cuda(monkeypatch):
    def on(device, **options):
        return compiles(TrainingOptions(**options), torch.device(device))

    for has_triton in (True, False):
        monkeypatch.setattr("wfimagevae.engine.device.has_triton", lambda has=has_triton: has)
        assert [on(device) for device in ("cuda", "cpu", "meta")] == [has_triton, False, False]
        for asked in (True, False):
            assert on("cuda", compile=asked) == on("cpu", compile=asked) == asked
    # A graph's gradients lie where its next run writes.
    for mode in ("reduce-overhead", "max-autotune"):
        graphs = {"compile": True, "compile_mode": mode}
        with pytest.raises(ValueError, match=f"{mode} runs CUDA graphs.*--grad_accum_steps 2"):
            on("cuda", grad_accum_steps=2, **graphs)
        assert on("cuda", grad_accum_steps=1, **graphs) and on("cpu", grad_accum_steps=2, **graphs)


def test_gpu_libraries_are_named_beside_torch(monkeypatch):
    for name, value in (("version.hip", None), ("version.cuda", "13.0"), ("__version__", "2.14.1")):
        monkeypatch.setattr(f"torch.{name}", value)
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 92400)
    assert library_versions() == "torch 2.14.1, CUDA 13.0, cuDNN 9.24.0"
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.backends.mps.is_built", lambda: False)
    assert library_versions() == "torch 2.14.1, CPU only"
    monkeypatch.setattr("torch.version.hip", "6.4")
    assert library_versions() == "torch 2.14.1, HIP 6.4"


def test_fp8_multiplies_exactly_what_its_numbers_are():
    """Signs, that is; others are rounded to 3 bits of mantissa (e4m3), gradients to 2 (e5m2)."""
    pytest.importorskip("torchao", reason="needs torchao; .ci/run installs it for this test")
    torch.manual_seed(0)

    def outputs(x, weight):
        layer = nn.Linear(64, 32, bias=False)
        block = nn.Sequential(layer, nn.Linear(32, 7))  # which 16 does not divide
        layer.weight.data.copy_(weight)
        before = dict(block.named_parameters())
        found = []
        for count in (0, 1):
            if count:
                device = torch.device("cpu")
                assert multiply_in_fp8([block], device, "bf16", emulate=True) == count
                assert all(p is before[name] for name, p in block.named_parameters())
            block.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                y = block[0](x)
            y.sum().backward()
            found += [y.float(), block[0].weight.grad.clone()]
        return found

    signs = (torch.randint(0, 2, size).float() * 2 - 1 for size in ((48, 64), (32, 64)))
    y, grad, y_8, grad_8 = outputs(*signs)
    torch.testing.assert_close(y_8, y, rtol=0.01, atol=0.1)
    torch.testing.assert_close(grad_8, grad, rtol=0.01, atol=0.1)
    y, grad, y_8, grad_8 = outputs(torch.randn(48, 64), torch.randn(32, 64))
    for exact, rounded in ((y, y_8), (grad, grad_8)):
        assert 0.002 < (rounded - exact).norm() / exact.norm() < 0.06


def test_fp8_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "old")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 0))
    for device, name in (("cpu", "cpu"), ("cuda", "old")):
        with pytest.raises(ValueError, match=f"needs a GPU that has it, .*; this is {name}"):
            multiply_in_fp8([], torch.device(device), "bf16")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    with pytest.raises(ValueError, match="--mix_precision bf16, not fp32"):
        multiply_in_fp8([], torch.device("cuda"), "fp32")


def test_a_training_on_the_cpu_gets_the_memory_that_its_last_step_freed():
    # 8 tensors of 24 MiB are 49,152 pages, which the kernel clears one by one where they are new.
    code = """
import resource, torch
from wfimagevae.engine.device import use_device
use_device("cpu")
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.zeros(6 * 2**20) for _ in range(8)]
    del tensors
    new = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(new)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 5_000
