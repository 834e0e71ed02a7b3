from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from wfimagevae.engine.device import library_versions

ROOT = Path(__file__).parents[1]


def test_pins_are_public_versions_that_the_requirements_allow():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    allowed = {canonicalize_name(r.name): r for r in map(Requirement, requires("wfimagevae"))}
    assert not any("+" in version for version in pins.values())
    assert all(allowed[name].specifier.contains(version) for name, version in pins.items())
    dev = {
        name for name, r in allowed.items() if not r.marker or r.marker.evaluate({"extra": "dev"})
    }
    assert dev <= pins.keys()


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
