"""Checkpoints: all state in one file, or a folder of shards, that is whole or not there."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.distributed import ProcessGroup
from torch.distributed import checkpoint as dcp
from torch.distributed.tensor import DTensor

from wfimagevae.engine.cost import size_of
from wfimagevae.engine.options import OPTIMIZERS, OptimizerOptions
from wfimagevae.engine.sharding import whole_state
from wfimagevae.files import FACTS, read_torch_file, write_atomically
from wfimagevae.sharded_files import mapped

if TYPE_CHECKING:
    from wfimagevae.engine.player import Player

log = logging.getLogger("wfimagevae")

_NAME = re.compile(r"checkpoint-(\d+)\.ckpt")


class Part(NamedTuple):
    """What has a state to save, by two functions; anything with methods of these names is one."""

    state_dict: Callable[[], dict]
    load_state_dict: Callable[[dict], Any]


def collect(parts: Mapping[str, Part], keep: bool = True, shards: bool = False, **facts) -> dict:
    """The content of a checkpoint: all parts, and plain ``facts``, as they are now. Collective.

    ``parts`` maps dotted paths inside the file to what has the state, such as
    ``{"state_dict.gen_model": vae, "optimizer_state.gen_optimizer": ...}``. What training goes on
    changing is copied, whole or, with ``shards``, each process's own part, to the CPU, but where no
    process that writes it would ``keep`` it.
    """
    content: dict[str, Any] = whole_state(facts, keep)
    # A dotted path becomes dictionaries within dictionaries.
    for name, part in parts.items():
        node = content
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = whole_state(part.state_dict(), keep, shards)
    if keep and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return content


def checkpoint_size(
    parts: Mapping[str, Part], players: Sequence["Player"], options: OptimizerOptions
) -> float:
    """What a checkpoint will weigh, in GB, to a percent: weights, averages, optimizers' moments."""
    # A fresh optimizer has no moments yet.
    trained = [player.parameters for player in players]
    weights = [part.state_dict() for name, part in parts.items() if "state_dict" in name]
    return (size_of(weights) + OPTIMIZERS[options.optimizer] * size_of(trained)) / 1e9


def restore(parts: Mapping[str, Part], content: dict) -> None:
    """Restores every part from a checkpoint's content; ValueError for what does not fit."""
    for name, part in parts.items():
        node = content
        for key in name.split("."):
            if not isinstance(node, dict) or key not in node:
                raise ValueError(f"the checkpoint has no {name!r}")
            node = node[key]
        with fitting(f"{name!r} of the checkpoint"):
            check_types(node, part.state_dict(), name)
            part.load_state_dict(node)


@contextlib.contextmanager
def fitting(what: str) -> Iterator[None]:
    """What loading a state raises that is of another network or kind, as a ValueError."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        raise ValueError(f"{what} does not fit: {kind}{error}") from None


def check_types(found: Any, own: Any, name: str) -> None:
    """Raises TypeError where a saved state has another type than one's own has there."""
    if isinstance(own, dict) and isinstance(found, dict):
        for key in own.keys() & found.keys():
            check_types(found[key], own[key], f"{name}.{key}")
        return
    for kind in (dict, torch.Tensor, str, int, int | float, list | tuple):
        if isinstance(own, kind) and not isinstance(found, kind):
            raise TypeError(f"{name} is a {type(found).__name__}, not a {type(own).__name__}")
    if isinstance(own, list | tuple):
        for i, (value, mine) in enumerate(zip(found, own, strict=False)):
            check_types(value, mine, f"{name}.{i}")


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint, on the CPU; ValueError if it is not a whole one.

    It is mapped to memory: a process reads what it uses, and the file stays until then. Shards are
    read when they are copied, by any number of processes.
    """
    content = read_torch_file(path)
    if not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path} is not a training checkpoint: it has no 'state_dict'")
    return content


def whole_checkpoint(path: Path, may_go_back: bool = True) -> Path:
    """``path`` if it is whole, else the newest checkpoint beside it that is, told loudly.

    Raises:
        ValueError: none is whole, or it must be ``path``; the newest whole ones are named.
    """
    problems, whole = [], []
    beside = [*list_checkpoints(path.parent)[::-1], *path.parent.glob("best-*.ckpt")]
    for candidate in (path, *(other for other in beside if other != path)):
        try:
            read_checkpoint(candidate)
        except (ValueError, OSError) as error:
            problems.append(error)
            continue
        if candidate == path:
            return path
        whole.append(candidate)
        if may_go_back or len(whole) == 3:
            break
    if not (whole and may_go_back):
        names = ", ".join(map(str, whole)) or "none"
        raise ValueError(f"{problems[0]}; whole checkpoints beside it: {names}")
    for problem in problems:
        log.error("%s", problem)
    log.error("training goes back to the newest checkpoint that is whole: %s", whole[0])
    return whole[0]


def write_checkpoint(path: Path, content: dict, group: ProcessGroup | None = None) -> None:
    """Writes what `collect` gave; if that fails, an OSError, an earlier one stays as it was.

    With the ``group`` of all processes, ``path`` is a folder of everybody's shards, which the first
    process gives its name when all are done.
    """
    made = path.with_name(f".{path.name}.new.tmp") if group or path.is_dir() else path
    if group is None:
        write_atomically(made, lambda file: torch.save(content, file))
        _put(made, path)
        return
    shards = {}

    def apart(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        shards[name] = tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    writer = _Writer(made)
    writer.final, writer.facts = path, mapped(content, apart)
    try:
        dcp.save(shards, storage_writer=writer, process_group=group)
    except (dcp.CheckpointException, RuntimeError, OSError) as error:
        shutil.rmtree(made, ignore_errors=True)  # no process writes any more, or one has died
        reasons = [reason for reason, _ in getattr(error, "failures", {}).values()]
        raise OSError(f"could not write {path}: {(reasons or [error])[0]}") from error


class _Writer(dcp.FileSystemWriter):
    def finish(self, metadata: dcp.Metadata, results: list) -> None:
        """The end, when all have written, in the first process: the facts, and the real name."""
        super().finish(metadata, results)
        index = dataclasses.replace(metadata, storage_meta=None)  # all plain
        content = {"facts": self.facts, "index": index}
        write_atomically(self.path / FACTS, lambda file: torch.save(content, file))
        _put(self.path, self.final)


def _put(made: Path, path: Path) -> None:
    """Renames to ``path``; a folder there, or a file that becomes one, is set aside till then."""
    in_the_way = made != path and path.exists() and (path.is_dir() or made.is_dir())
    aside = set_aside(path) if in_the_way else None
    os.replace(made, path)
    if aside:
        remove(aside)


def remove(path: Path) -> None:
    """Removes a checkpoint; a kill leaves no half of one under its name."""
    if path.is_dir():
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.old.tmp")))
    else:
        path.unlink(missing_ok=True)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}.ckpt"


def step_of(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """The step checkpoints of a run's folder, lowest step first."""
    return sorted([p for p in folder.glob("*.ckpt") if _NAME.fullmatch(p.name)], key=step_of)


def set_aside(path: Path, keep: bool = False) -> Path:
    """Renames (or copies) to the first free ``<name>.superseded-<n>``, and returns that."""
    names = (path.with_name(f"{path.name}.superseded-{n}") for n in itertools.count(1))
    target = next(name for name in names if not name.exists())
    return shutil.copyfile(path, target) if keep else path.rename(target)


def link_or_copy(source: Path, target: Path) -> None:
    """Makes ``target`` the same checkpoint as ``source``, or a copy where links cannot be had."""
    # The link has another name first, so that a file is never missing.
    temporary = target.with_name(f".{target.name}.link.tmp")
    remove(temporary)
    copy = functools.partial(shutil.copytree, copy_function=_link) if source.is_dir() else _link
    copy(source, temporary)
    _put(temporary, target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
