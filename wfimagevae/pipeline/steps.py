"""A pipeline file with the line of everything in it; its steps, each with all that it inherits.

No torch here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import ValidationError

from wfimagevae.command_line import bare_type
from wfimagevae.options import by_own_names, explain, nearest
from wfimagevae.pipeline.fluxflow import (
    COMPONENTS,
    DataSection,
    DatasetSection,
    PipelineFile,
    Section,
    Settings,
    StepSection,
)
from wfimagevae.pipeline.instead import FLAGS, HAPPENS_ANYWAY, INSTEAD, instead_of
from wfimagevae.yaml_files import read_nodes

Place = tuple[str | int, ...]
# A place in the file, or keys of a step, and what is wrong there.
Problems = Iterator[tuple[Place, str]]


class PipelineError(ValueError):
    """A pipeline file that cannot be run; the message lists everything that is wrong."""


@dataclass
class Document:
    """A file's content, the line of each key and list item, and (line, what is wrong) so far."""

    path: Path
    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def line(self, place: Place) -> int:
        """The line of what stands at a place, or of the nearest thing above it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def report(self, place: Place, message: str) -> None:
        """Notes a problem, once."""
        problem = self.line(place), message
        if problem not in self.problems:
            self.problems.append(problem)

    def check(self) -> None:
        """Raises PipelineError with all problems, by line, if there are any."""
        if not self.problems:
            return
        listed = "\n".join(f"  line {line}: {text}" for line, text in sorted(self.problems))
        count = len(self.problems)
        raise PipelineError(f"{self.path} has {count} problem{'s' if count > 1 else ''}:\n{listed}")


def read_document(path: str | Path) -> Document:
    """Reads a YAML file, or a PipelineError; keys given twice are problems of the document."""
    try:
        data, node, repeated = read_nodes(path)
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise PipelineError(f"{path}: {error}") from None
    return Document(Path(path), data, dict(_lines(node, ())), repeated)


def _lines(node: yaml.Node | None, place: Place) -> Iterator[tuple[Place, int]]:
    """The places in a node, and their lines; the last line of a place counts."""
    entries = []
    if isinstance(node, yaml.MappingNode):
        entries = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        entries = [(index, value, value) for index, value in enumerate(node.value)]
    for name, at, value in entries:
        yield (*place, name), at.start_mark.line + 1
        yield from _lines(value, (*place, name))


def dotted(place: Place) -> str:
    """A place as people write it: training.pipeline.steps[1].lr."""
    parts = (f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")


SHARED: Place = ("training",)
DEFAULTS: Place = ("training", "pipeline", "defaults")
DEFAULT_SIZE = 1024
# What says that a step trains, and what to write instead of freezing it.
MODES = {
    "train_vae": "write train_vae: decoder (or encoder) to train the other half",
    "gan_training": "options: {freeze_discriminator: true} lets one judge without learning",
    "train_diff": "options: {freeze_flow: true} trains its text encoder alone",
    "train_diff_full": "options: {freeze_flow: true} trains its text encoder alone",
}


class Source(NamedTuple):
    """Where a step's data comes from: a section of the file."""

    place: Place
    section: DataSection | DatasetSection


@dataclass(frozen=True)
class Step:
    """A step as it will be trained."""

    index: int  # starting at 0
    settings: StepSection  # with all that it inherits
    own: dict[str, Any]  # what the file says at the step itself
    source: Source | None
    size: int  # height and width that it trains on, in pixels
    text_encoder: str | None

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.settings.name

    @property
    def place(self) -> Place:
        """Where it stands in the file."""
        return ("training", "pipeline", "steps", self.index)

    @property
    def is_gan_only(self) -> bool:
        """Whether the VAE learns from the discriminator and the KL term alone."""
        return bool(self.settings.gan_training and not self.settings.train_vae)

    @property
    def task(self) -> str | None:
        """Its training; None where nothing says what it trains."""
        settings = self.settings
        if settings.train_vae or settings.gan_training:
            return "vae"
        return "flow" if settings.train_diff or settings.train_diff_full else None

    @property
    def declared(self) -> set[str]:
        """Components that its keys say it trains."""
        mode = self.settings.train_vae
        names = set(COMPONENTS["vae" if mode is True else mode]) if mode else set()
        names |= {"discriminator"} if self.settings.gan_training else set()
        return names | ({"flow"} if self.task == "flow" else set())

    @property
    def frozen(self) -> set[str]:
        """Components that the file freezes."""
        both = self.settings.freeze, self.settings.unfreeze
        kept, freed = (set().union(*(COMPONENTS[name] for name in names)) for names in both)
        return kept - freed

    @property
    def trained(self) -> set[str]:
        """Components that learn."""
        names, options = self.declared, self.settings.options
        names |= COMPONENTS["vae"] if self.is_gan_only else set()
        if self.task == "flow" and self.text_encoder == "bytes":
            names.add("text_encoder")
        kept = {name for name in ("discriminator", "flow") if options.get(f"freeze_{name}")}
        return names - self.frozen - kept

    def origin(self, document: Document, *key: str) -> Place:
        """Where a setting's value comes from."""
        data_set = (self.source.place,) if self.source else ()
        for section in (self.place, *data_set, DEFAULTS, SHARED):
            for name in (key[-1], f"no_{key[-1]}"):
                if (*section, *key[:-1], name) in document.lines:
                    return (*section, *key[:-1], name)
        return (*self.place, *key)


@dataclass(frozen=True)
class Pipeline:
    """A file: its lines, what it says, and its steps; and flags of the command line over it."""

    document: Document
    content: PipelineFile
    steps: list[Step]
    flags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """The folder of everything."""
        return Path(self.content.output.output_path)

    def folder(self, step: Step) -> Path:
        """The folder of a step's run."""
        return self.output / "steps" / f"{step.index + 1:02d}_{step.name}"

    def before(self, step: Step, task: str) -> list[Step]:
        """The steps before one that train a task."""
        return [other for other in self.steps[: step.index] if other.task == task]


def read_pipeline(path: str | Path, flags: Mapping[str, Any] | None = None) -> Pipeline:
    """A file's steps, as far as its keys and types go; the document has the problems so far.

    A file that cannot be read, is not YAML, or holds no pipeline at all is a PipelineError.
    """
    document, flags = read_document(path), flags or {}
    if not isinstance(document.data, dict):
        document.report((), "expected sections: model, data, training, output")
        document.check()
    _check_form(document)
    content = _read(document)
    for name in ("training", "output"):
        section = getattr(content, name)
        over = {key: flags[use.flag] for key, use in section.keys().items() if use.flag in flags}
        content = content.changed(**{name: section.changed(**over)})
    return Pipeline(document, content, _merge_steps(content, flags), flags)


def _check_form(document: Document) -> None:
    """There is something to train: steps, or one step that stands flat under ``training``."""
    training = document.data.get("training")
    is_section = isinstance(training, dict)
    if is_section and training.get("pipeline") is not None:
        return
    if not (is_section and any(mode in training for mode in MODES)):
        text = "nothing to train: write training.pipeline.steps: [{name: ..., train_vae: true, "
        text += f"...}}], or one of {', '.join(MODES)} under training for a single step"
        document.report(("training",), text)
        document.check()
    # FluxFlow's flat file: what it says under ``training`` is its one step's own.
    step = {key: training.pop(key) for key in StepSection.model_fields if key in training}
    training["pipeline"] = {"steps": [{"name": "train"} | step]}
    place = ("training", "pipeline", "steps", 0)
    document.lines |= {place[:end]: document.line(("training",)) for end in (2, 3, 4)}
    for (top, *below), line in list(document.lines.items()):
        if top == "training" and below and below[0] in step:
            document.lines[(*place, *below)] = line


def _read(document: Document) -> PipelineFile:
    """What a file says, without what is wrong in it, which is reported; it needs steps."""
    data = document.data
    while True:
        try:
            return PipelineFile(**data)
        except ValidationError as error:
            problems = error.errors()
        idle: dict[tuple, dict[Place, str]] = {}
        for problem in problems:
            kind, place, value = problem["type"], problem["loc"], problem["input"]
            if place[-1] == "[key]":
                kind, place = "extra_forbidden", place[:-1]
            key = place  # or the list that it is an entry of
            while isinstance(key[-1], int) and kind != "model_type":
                key = key[:-1]
            try:
                section = reduce(getitem, key[:-1], data)
            except KeyError:
                continue  # within what is wrong as a whole
            if kind == "missing":
                document.report(place[:-1], f"{dotted(place)} is missing")
            elif kind in ("model_type", "dict_type"):
                section[key[-1]] = {}
                if value is not None:
                    document.report(place, f"{dotted(place)}: {value!r:.80} is not keys and values")
            elif kind == "extra_forbidden":
                del section[key[-1]]
                if not (instead := instead_of(place)):
                    document.report(place, _unknown_key(place))
                elif value is not None and (key[-1], value) not in HAPPENS_ANYWAY:
                    # One message for what one edit mends: leaving keys out, or writing another.
                    remedy = instead if instead.startswith("write ") else "leave out"
                    idle.setdefault((place[:-1], remedy), {})[place] = instead
            else:
                section.pop(key[-1], None)
                text = explain(PipelineFile, problem)[1]
                text = text.replace("Input should be a valid", f"{value!r:.80} is no")
                if kind in ("list_type", "too_short") and key[-1] == "steps":
                    text = f"{value!r:.80} is not a list of at least one"
                document.report(place, f"{dotted(key)}: {text}")
        for (_, remedy), keys in idle.items():
            text = "; ".join(dict.fromkeys([remedy, *keys.values()]))
            first, *others = keys
            names = ", ".join([dotted(first), *(other[-1] for other in others)])
            verb = "mean" if others else "means"
            document.report(first, f"{names} {verb} nothing here: {text}")
        steps = data["training"]["pipeline"].get("steps", [])
        if not steps:
            document.check()
        for i, step in enumerate(steps):  # one without a name keeps its place among the others
            step.setdefault("name", f"step{i + 1}")


def _unknown_key(place: Place) -> str:
    """What is said of a key that no section there has."""
    *above, key = place
    kind = PipelineFile
    for part in above:
        fields = getattr(kind, "model_fields", None)
        kind = bare_type(fields[part].annotation) if fields else get_args(kind)[-1]
    fields = getattr(kind, "model_fields", None)
    hint = nearest(key, fields or get_args(get_args(kind)[0]))
    if fields and "did you mean" not in hint:
        for name, section in PipelineFile.model_fields.items():
            if key in bare_type(section.annotation).model_fields or instead_of((name, key)):
                return f"unknown key {dotted(place)}: it belongs below {name}, indented"
        if key in FLAGS:
            hint = f": write {INSTEAD.get(key, f'options: {{{key}: ...}}, of a step')}"
    return f"unknown key {dotted(place)}{hint}"


def _merge_steps(content: PipelineFile, flags: Mapping[str, Any]) -> list[Step]:
    """All steps, each with what it inherits: shared values < defaults < data set < step < flags."""
    training, pipeline = content.training, content.training.pipeline
    shared = {key: value for key, value in said(training).items() if key in Settings.model_fields}
    keys = StepSection.keys().items()
    over = {name: flags[key.flag] for name, key in keys if key.flag in flags}
    over["options"] = {flag: value for flag, value in flags.items() if flag not in INSTEAD}
    if "epochs" in flags and "max_steps" not in flags:
        over["steps"] = None  # which would win
    steps = []
    for index, section in enumerate(pipeline.steps):
        own, above = said(section), _merge(shared, said(pipeline.defaults))
        source = Source(("data",), content.data) if content.data.paths else None
        name = own.get("dataset", above.get("dataset")) or pipeline.default_dataset
        if name is not None:
            data_set = pipeline.datasets.get(name)
            source = data_set and Source(("training", "pipeline", "datasets", name), data_set)
        if source and isinstance(source.section, DatasetSection):
            kept = {"batch_size", "workers", "options"}
            of_data = {key: value for key, value in said(source.section).items() if key in kept}
            above = _merge(above, of_data)
        settings = StepSection(**_merge(_merge(above, own), over))
        of_source = source.section.img_size if source else None
        size = settings.options.get("resolution") or of_source or content.data.img_size
        size = size if isinstance(size, int) else DEFAULT_SIZE  # a wrong one is told elsewhere
        steps.append(Step(index, settings, own, source, size, content.model.text_encoder))
    return steps


def said(section: Section) -> dict[str, Any]:
    """What the file says of a section, without defaults; switches of options by their own names."""
    values = section.model_dump(exclude_unset=True)
    options = values.get("options")
    return values | {"options": by_own_names(options, FLAGS)} if options else values


def _merge(under: dict, over: Mapping) -> dict:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
