from wfimagevae.engine.device import library_versions


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
