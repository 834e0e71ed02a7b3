"""Hugging Face folders: configuration, weights and a card."""

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import nn

from wfimagevae.files import read_json, write_json

_log = logging.getLogger("wfimagevae")


def check_target(folder: Path, *sources: str) -> None:
    """Raises ValueError if an export would overwrite its source, or never be read again."""
    if any(Path(source).resolve() == folder.resolve() for source in sources):
        raise ValueError(f"--save_dir {folder} is where the model comes from; choose another")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--save_dir {folder} is a file; name a folder")
    if any(folder.glob("*.ckpt")):
        raise ValueError(
            f"--save_dir {folder} holds .ckpt files, which would be loaded instead of the export; "
            "choose another"
        )


def write_model(network: nn.Module, folder: Path, card: str | None = None) -> None:
    """Writes config.json, safetensors and, with a card, README.md, over an earlier export."""
    path, replaced = folder / "config.json", {}
    with contextlib.suppress(FileNotFoundError, ValueError):  # a first export, a broken file
        replaced = read_json(path)
    network.save_pretrained(folder)
    config = read_json(path)
    config.pop("_name_or_path", None)  # a path of this machine
    write_json(path, config)
    if any(key in replaced and replaced[key] != config.get(key) for key in ("shift", "scale")):
        _log.warning("%s had another shift and scale: run latent_stats.py --write again", path)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_card(name: str, task: str, tags: Iterable[str], sections: Sequence[str]) -> str:
    """Text of a model card, with the front matter that the Hugging Face hub reads."""
    front = f"library_name: wfimagevae\npipeline_tag: {task}\ntags: [{', '.join(tags)}]"
    return "\n".join(["---", front, "---\n", f"# {name}\n", *filter(None, sections)])


def option_table(training: Mapping | None, names: Sequence[str]) -> str:
    """Section of a model card: those of a training's options, if known, that counted."""
    if not training:
        return ""
    idle = "epochs" if training.get("max_steps") else "max_steps"  # the one wins over the other
    rows = [f"| {n} | {training[n]} |" for n in names if n in training and n != idle]
    return "\n".join(["## Training\n", "| option | value |", "|---|---|", *rows, ""])
