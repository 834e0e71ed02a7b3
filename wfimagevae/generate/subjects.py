"""What samples show, classes and prompts, and how the files of their pictures are called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wfimagevae.files import read_text

_LONGEST_NAME = 60
_RESERVED = re.compile(r"samples")  # what generate.py calls its other record


@dataclass(frozen=True)
class Subject:
    """One sample to draw: a class, a text, both or neither."""

    index: int  # with the seed decides the noise
    label: int | None = None
    prompt: str | None = None


def subjects_in_turn(
    count: int, labels: Sequence[int] = (), prompts: Sequence[str] = ()
) -> list[Subject]:
    """Samples 0 to count - 1, which take classes and prompts in turn; none of what is empty."""
    labels, prompts = labels or [None], prompts or [None]
    return [Subject(i, labels[i % len(labels)], prompts[i % len(prompts)]) for i in range(count)]


def prompt_subjects(
    prompts: Sequence[str], per_prompt: int, labels: Sequence[int] = ()
) -> list[Subject]:
    """Some samples of each prompt, one prompt behind the other, which take classes in turn.

    Sample i of every prompt starts from the same noise: a picture depends on its prompt, the seed
    and its number alone, not on the other prompts.
    """
    rows, labels = [(i, text) for text in prompts for i in range(per_prompt)], labels or [None]
    return [Subject(i, labels[n % len(labels)], text) for n, (i, text) in enumerate(rows)]


class Prompt(NamedTuple):
    """What to draw, and the name of its picture's file without extension."""

    text: str
    stem: str


def read_prompts(path: str | Path, flag: str = "--prompts_path") -> list[Prompt]:
    """The prompts of a folder, one in each of its .txt files; or of a file, one a line.

    Those of a folder have their files' names; of several lines in one, all belong to the prompt.
    Nothing there, or no text, is a ValueError, which names the flag.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".txt")
        prompts = [Prompt(" ".join(read_text(file).split()), file.stem) for file in files]
        if empty := [prompt.stem for prompt in prompts if not prompt.text]:
            raise ValueError(
                f"{flag} {path}: {empty[0]}.txt holds no text; remove it, or draw without "
                'a prompt by --prompt ""'
            )
    elif path.is_file():
        lines = [line.strip() for line in read_text(path).splitlines()]
        prompts = [Prompt(line, slug(line)) for line in lines if line]
    else:
        raise ValueError(f"{flag} {path}: no such folder or file")
    if not prompts:
        content = ".txt files" if path.is_dir() else "a prompt a line"
        raise ValueError(f"{flag} {path}: no prompts; looked for {content}")
    return prompts


def slug(text: str) -> str:
    """The words of a text as a file's name: "A red circle!" is ``a-red-circle``."""
    words = "-".join(re.findall(r"\w+", text.lower()))
    return words[:_LONGEST_NAME].strip("-_") or "no-prompt"


def records_folder(folder: str | Path) -> Path:
    """Where grids and records of a folder's pictures stand: ``FOLDER-records``, beside it.

    Whatever looks for samples in the folder, or below it, finds nothing else.
    """
    folder = Path(folder)
    folder = folder if folder.name.strip(".") else folder.resolve()
    return folder.with_name(f"{folder.name}-records")


def free_names(folder: Path, stems: Sequence[str]) -> list[str]:
    """A name for each stem that neither a picture in the folder, or its record, nor another has.

    The first is the stem itself, the next ``stem-1``, ``stem-2``, unless that is another stem.
    """
    kinds = (folder, ".png"), (records_folder(folder), ".json")
    taken = {file.stem for place, kind in kinds for file in place.glob(f"*{kind}")}
    stems = [f"{stem}_" if _RESERVED.fullmatch(stem) else stem for stem in stems]
    numbers, names = dict.fromkeys(stems, 0), []
    for stem in stems:
        name = stem
        while name in taken or (name != stem and name in numbers):
            numbers[stem] += 1
            name = f"{stem}-{numbers[stem]}"
        taken.add(name)
        names.append(name)
    return names
