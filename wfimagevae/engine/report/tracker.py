"""Experiment trackers, off by default; one that fails is switched off and never stops training."""

import importlib.util
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TRACKERS = ("none", "wandb", "trackio", "tensorboard")
PROJECT = "wfimagevae"

_log = logging.getLogger(__name__)


class Tracker:
    """A tracking service behind a fence: its first failure is one warning, and then it is off.

    Args:
        kind: The service's name, for the warning.
        connect: Makes its backend, which has the methods ``log``, ``log_images`` and ``close``
            of this class; None tracks nothing.
    """

    def __init__(self, kind: str, connect: Callable[[], Any] | None = None):
        self._kind, self._backend = kind, None
        self._backend = self._guard(connect) if connect else None

    @property
    def is_on(self) -> bool:
        """False for ``none``, and once the backend has failed."""
        return self._backend is not None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers under their names at ``step``."""
        if self.is_on:
            self._guard(self._backend.log, step, values)

    def log_images(self, step: int, images: Mapping[str, str | Path]) -> None:
        """Records image files (paths, PNG or JPEG) under their names at ``step``."""
        if self.is_on:
            self._guard(self._backend.log_images, step, {n: Path(p) for n, p in images.items()})

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
            _log.warning("%s (training and its CSV go on): %s", off, reason)
            return None


def open_tracker(kind: str, run_dir: str | Path, name: str, options: Mapping[str, Any]) -> Tracker:
    """Connects to an experiment tracker, whose files go into ``run_dir``.

    A resumed run goes on in its old record. WANDB_MODE=offline and the other variables of the
    services apply; WANDB_PROJECT (or TRACKIO_PROJECT) replaces the project's name, wfimagevae.

    Args:
        kind: One of `TRACKERS`.
        run_dir: The run's folder.
        name: The run's name.
        options: Resolved options, kept beside the numbers.

    Returns:
        A tracker; off if ``kind`` is ``none``, or if the service could not be reached.

    Raises:
        ValueError: unknown ``kind``, or its package is not installed.
    """
    if kind not in TRACKERS:
        raise ValueError(f"unknown tracker {kind!r}; use one of {', '.join(TRACKERS)}")
    if kind == "none":
        return Tracker(kind)
    if importlib.util.find_spec(kind) is None:
        raise ValueError(f"--tracker {kind} needs a package: pip install {kind}")
    backend = {"wandb": _Wandb, "trackio": _Trackio, "tensorboard": _TensorBoard}[kind]
    return Tracker(kind, lambda: backend(Path(run_dir), name, dict(options)))


class _Wandb:
    def __init__(self, run_dir: Path, name: str, options: dict):
        import wandb

        id_path = run_dir / "wandb_id.txt"
        if not id_path.exists():
            id_path.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=id_path.read_text(encoding="utf-8").strip(),
            resume="allow",
            name=name,
            dir=str(run_dir),
            config=options,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def log_images(self, step: int, images: Mapping[str, Path]) -> None:
        self._run.log({n: self._image(str(path)) for n, path in images.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, run_dir: Path, name: str, options: dict):
        # trackio reads its folder when imported.
        os.environ.setdefault("TRACKIO_DIR", str(run_dir / "trackio"))
        import trackio

        self._trackio = trackio
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        trackio.init(project=project, name=name, resume="allow", config=options)
        _log.info("to look at it: TRACKIO_DIR=%s trackio show", os.environ["TRACKIO_DIR"])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def log_images(self, step: int, images: Mapping[str, Path]) -> None:
        loaded = {n: self._trackio.Image(str(path)) for n, path in images.items()}
        self._trackio.log(loaded, step=step)

    def close(self) -> None:
        self._trackio.finish()


class _TensorBoard:
    def __init__(self, run_dir: Path, name: str, options: dict):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"))
        table = "\n".join(f"| {key} | {value} |" for key, value in options.items())
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
