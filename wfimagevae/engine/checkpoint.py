"""Checkpoints: all state in one file that is either whole or not there."""

import itertools
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from wfimagevae.engine.sharding import whole_state
from wfimagevae.files import read_torch_file, write_atomically

_NAME = re.compile(r"checkpoint-(\d+)\.ckpt")


class Stateful(Protocol):
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> Any: ...


def collect(parts: Mapping[str, Stateful], keep: bool = True, **facts) -> dict[str, Any]:
    """The content of a checkpoint: all parts, and plain ``facts``, without shards. Collective.

    ``parts`` maps dotted paths inside the file to what has the state, such as
    ``{"state_dict.gen_model": vae, "optimizer_state.gen_optimizer": ...}``. A process that does not
    write them has no need to ``keep`` what was sharded.
    """
    content: dict[str, Any] = dict(facts)
    # A dotted path becomes dictionaries within dictionaries.
    for name, part in parts.items():
        node = content
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = whole_state(part.state_dict(), keep)
    return content


def restore(parts: Mapping[str, Stateful], content: dict) -> None:
    """Restores every part from a checkpoint's content; ValueError for what does not fit."""
    for name, part in parts.items():
        node = content
        for key in name.split("."):
            if key not in node:
                raise ValueError(f"the checkpoint has no {name!r}")
            node = node[key]
        try:
            part.load_state_dict(node)
        except RuntimeError as error:  # torch's word for missing keys and wrong shapes
            raise ValueError(f"{name!r} of the checkpoint does not fit: {error}") from None


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint file, on the CPU; ValueError if it is not a whole one."""
    # Not memory-mapped: a run goes on for days with what it read, whatever becomes of the file.
    content = read_torch_file(path, mmap=False)
    if "state_dict" not in content:
        raise ValueError(f"{path} is not a training checkpoint: it has no 'state_dict'")
    return content


def write_checkpoint(path: Path, content: dict) -> None:
    """Writes what `collect` gave; if that fails, an earlier file stays as it was."""
    write_atomically(path, lambda file: torch.save(content, file))


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}.ckpt"


def step_of(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """The step checkpoints of a run's folder, lowest step first."""
    return sorted((p for p in folder.glob("*.ckpt") if _NAME.fullmatch(p.name)), key=step_of)


def set_aside(path: Path) -> Path:
    """Renames a file to the first free ``<name>.superseded-<n>``, and returns that."""
    names = (path.with_name(f"{path.name}.superseded-{n}") for n in itertools.count(1))
    return path.rename(next(name for name in names if not name.exists()))


def prune_checkpoints(folder: Path, keep_last: int) -> None:
    """Deletes all but the ``keep_last`` highest steps; 0 keeps all."""
    if keep_last:
        for path in list_checkpoints(folder)[:-keep_last]:
            path.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Makes ``target`` the same file as ``source``, or a copy where links cannot be had."""
    # The link has another name first, so that the target is never missing.
    temporary = target.with_name(f".{target.name}.link.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
