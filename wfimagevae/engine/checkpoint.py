"""Checkpoints: all state in one file that is either whole or not there."""

import contextlib
import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from wfimagevae.engine.sharding import whole_state
from wfimagevae.files import read_torch_file, write_atomically

log = logging.getLogger("wfimagevae")

_NAME = re.compile(r"checkpoint-(\d+)\.ckpt")


class Part(NamedTuple):
    """What has a state to save, by two functions; anything with methods of these names is one."""

    state_dict: Callable[[], dict]
    load_state_dict: Callable[[dict], Any]


def collect(parts: Mapping[str, Part], keep: bool = True, **facts) -> dict[str, Any]:
    """The content of a checkpoint: all parts, and plain ``facts``, as they are now. Collective.

    ``parts`` maps dotted paths inside the file to what has the state, such as
    ``{"state_dict.gen_model": vae, "optimizer_state.gen_optimizer": ...}``. What training goes on
    changing is copied, whole, to the CPU, but where no process that writes it would ``keep`` it.
    """
    content: dict[str, Any] = whole_state(facts, keep)
    # A dotted path becomes dictionaries within dictionaries.
    for name, part in parts.items():
        node = content
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = whole_state(part.state_dict(), keep)
    if keep and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return content


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
    """The content of a checkpoint file, on the CPU; ValueError if it is not a whole one.

    It is mapped to memory: a process reads what it uses, and the file stays until then.
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


def set_aside(path: Path, keep: bool = False) -> Path:
    """Renames (or copies) a file to the first free ``<name>.superseded-<n>``, and returns that."""
    names = (path.with_name(f"{path.name}.superseded-{n}") for n in itertools.count(1))
    target = next(name for name in names if not name.exists())
    return shutil.copyfile(path, target) if keep else path.rename(target)


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
