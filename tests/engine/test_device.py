import pytest
import torch

from wfimagevae.engine.device import compiles, library_versions
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
