"""Experiment trackers, off by default; one that fails is switched off and never stops training."""

import importlib
import importlib.util
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wfimagevae.command_line import printable

PROJECT = "wfimagevae"

_log = logging.getLogger(__name__)


class Tracker:
    """A tracking service behind a fence: its first failure is one warning, and then it is off.

    ``connect`` makes its backend, which has the methods ``log``, ``log_images`` and ``close`` of
    this class.
    """

    def __init__(self, kind: str, connect: Callable[[], Any]):
        self._kind = kind
        self._backend = self._guard(connect)

    @property
    def is_on(self) -> bool:
        return self._backend is not None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.is_on:
            self._guard(self._backend.log, step, values)

    def log_images(self, step: int, images: Mapping[str, str | Path]) -> None:
        """Records image files (paths, PNG or JPEG) under their names at ``step``."""
        if self.is_on:
            paths = {printable(name): Path(path) for name, path in images.items()}
            self._guard(self._backend.log_images, step, paths)

    def close(self) -> None:
        """Sends what is pending; nothing is recorded afterwards."""
        if self.is_on:
            self._guard(self._backend.close)
        self._backend = None

    def _guard(self, call: Callable, *args) -> Any:
        # A service, its network and its library can fail in ways that no list of exceptions
        # covers, and none of them is worth a month's training run: the CSV has the numbers.
        try:
            return call(*args)
        except Exception as error:
            self._backend = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            off = f"tracker {self._kind} failed and is now off"
            _log.warning("%s (all else goes on): %s", off, reason)
            return None


def check_installed(kind: str) -> None:
    """Raises ValueError where a tracker, which is not none, lacks its package."""
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise ValueError(f"--tracker {kind} needs a package: pip install {kind}")


def open_tracker(kind: str, run_dir: str | Path, name: str, config: Mapping[str, Any]) -> Tracker:
    """Connects to an experiment tracker; files go into ``run_dir``, but trackio's to its own place.

    A resumed run goes on in its old record. WANDB_MODE=offline and the other variables of the
    services apply; WANDB_PROJECT (or TRACKIO_PROJECT) replaces the project's name, wfimagevae. The
    tracker is off where the service could not be reached.
    """
    check_installed(kind)
    # Services take UTF-8 only, which paths need not be.
    text = json.dumps(dict(config), ensure_ascii=False, default=str)
    plain = json.loads(text.encode("utf-8", "replace"))
    backend = _TensorBoard if kind == "tensorboard" else _Wandb
    return Tracker(kind, lambda: backend(kind, Path(run_dir), printable(name), plain))


class _Wandb:
    def __init__(self, kind: str, run_dir: Path, name: str, config: dict):
        id_path = run_dir / f"{kind}_id.txt"
        if not id_path.exists():
            id_path.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        run_id, place = id_path.read_text(encoding="utf-8").strip(), {}
        self._module = importlib.import_module(kind)
        project = os.environ.get(f"{kind.upper()}_PROJECT", PROJECT)
        if kind == "trackio":  # all runs of a user are in one place, where a name is what it knows
            name = f"{name}-{run_id}"
            _log.info("to compare runs: trackio show --project %s", project)
        else:
            place = {"id": run_id, "dir": str(run_dir)}
        self._module.init(project=project, name=name, resume="allow", config=config, **place)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)

    def log_images(self, step: int, images: Mapping[str, Path]) -> None:
        loaded = {n: self._module.Image(str(path)) for n, path in images.items()}
        self._module.log(loaded, step=step)

    def close(self) -> None:
        self._module.finish()


class _TensorBoard:
    def __init__(self, kind: str, run_dir: Path, name: str, config: dict):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"))
        table = "\n".join(f"| {key} | {value} |" for key, value in config.items())
        self._writer.add_text(name, f"| option | value |\n|---|---|\n{table}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_images(self, step: int, images: Mapping[str, Path]) -> None:
        import numpy as np
        from PIL import Image

        for name, path in images.items():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
