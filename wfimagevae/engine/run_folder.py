"""Where a run's files stand, and which checkpoint a command continues from."""

import re
from pathlib import Path

from wfimagevae.engine.checkpoint import list_checkpoints

_SUFFIX = r"-lr\d\.\d\de[+-]\d+-bs\d+-ga\d+-rs\d+"


def run_name(exp_name: str, lr: float, batch_size: int, accum_steps: int, resolution: int) -> str:
    """``exp-lr1.00e-05-bs4-ga8-rs1024``."""
    return f"{exp_name}-lr{lr:.2e}-bs{batch_size}-ga{accum_steps}-rs{resolution}"


def find_resume(resume: str | None, folder: Path, exp_name: str) -> tuple[Path, Path | None]:
    """The folder to write to and the checkpoint to continue from, if any.

    Args:
        resume: A checkpoint, a folder of them, ``auto`` (the newest checkpoint of a run of
            this name, or a fresh start) or None.
        folder: Where this command's options put a run.
        exp_name: The run's name, without its options.

    Raises:
        ValueError: nothing is there to resume, several runs could be meant, a run would be
            overwritten, or its name is a path.
    """
    if Path(exp_name).name != exp_name:
        raise ValueError(f"--exp_name {exp_name}: a name, not a path; folders go into --ckpt_dir")
    if not resume:
        return _unused(folder), None
    if resume == "auto":
        pattern = re.compile(re.escape(exp_name) + _SUFFIX)
        folders = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
        runs = [f for f in folders if pattern.fullmatch(f.name) and list_checkpoints(f)]
        if len(runs) > 1:
            listed = "\n  ".join(str(run) for run in runs)
            raise ValueError(
                f"several runs are named {exp_name!r}; pass one of them to "
                f"--resume_from_checkpoint:\n  {listed}"
            )
        return (runs[0], list_checkpoints(runs[0])[-1]) if runs else (folder, None)
    path = Path(resume)
    if path.is_dir():
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise ValueError(f"--resume_from_checkpoint {path}: no checkpoint-<step>.ckpt in it")
        path = checkpoints[-1]
    if not path.is_file():
        raise ValueError(f"--resume_from_checkpoint {path} does not exist")
    is_run = re.fullmatch(re.escape(exp_name) + _SUFFIX, path.parent.name)
    return (path.parent if is_run else _unused(folder)), path


def _unused(folder: Path) -> Path:
    if list_checkpoints(folder):
        raise ValueError(
            f"{folder} already holds checkpoints; continue with --resume_from_checkpoint "
            "auto, or choose another --exp_name"
        )
    return folder
