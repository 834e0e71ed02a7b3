"""A pipeline file's steps, each with all that it inherits. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from wfimagevae.command_line import bare_type
from wfimagevae.options import BadOptions, nearest
from wfimagevae.pipeline.document import Document, Place, dotted, read_document
from wfimagevae.pipeline.fluxflow import (
    COMPONENTS,
    OPTIONS,
    DataSection,
    DatasetSection,
    OutputSection,
    PipelineFile,
    Section,
    Settings,
    StepSection,
    TrainingSection,
)
from wfimagevae.pipeline.instead import HAPPENS_ANYWAY, INSTEAD, REPLACED

SHARED: Place = ("training",)
DEFAULTS: Place = ("training", "pipeline", "defaults")
DEFAULT_SIZE = 1024
FLAGS = {flag: field for cls in OPTIONS.values() for flag, field in cls.by_flag().items()}
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
        kept, freed = (
            {component for name in names for component in COMPONENTS[name]}
            for names in (self.settings.freeze, self.settings.unfreeze)
        )
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

    Raises:
        PipelineError: the file cannot be read, is not YAML, or holds no pipeline at all.
    """
    document, flags = read_document(path), flags or {}
    if not isinstance(document.data, dict):
        document.report((), "expected sections: model, data, training, output")
        document.check()
    _check_form(document)
    content = _read(document, (), PipelineFile, document.data)
    if not content.get("training", {}).get("pipeline", {}).get("steps"):
        document.check()
    for section, flags_of in (("training", TrainingSection), ("output", OutputSection)):
        named = {name: key.flag for name, key in flags_of.keys().items()}
        over = {name: flags[flag] for name, flag in named.items() if flag in flags}
        content[section] = content.get(section, {}) | over
    content = PipelineFile(**content)
    return Pipeline(document, content, _merge_steps(content, flags), flags)


def _check_form(document: Document) -> None:
    """Mistakes in the file's form whose consequences would say nothing; one step may stand flat."""
    training = document.data.get("training")
    if not isinstance(training, dict):
        document.report(("training",), "training.pipeline.steps is missing: nothing to train")
        document.check()
    pipeline = training.get("pipeline")
    if isinstance(pipeline, list):
        text = "training.pipeline is a bare list; write its steps under a key: pipeline: "
        document.report(("training", "pipeline"), text + "{steps: ...}")
        document.check()
    if pipeline is None and any(mode in training for mode in MODES):
        # A flat file (FluxFlow's): what it says under ``training`` is its one step's own.
        step = {key: training.pop(key) for key in StepSection.model_fields if key in training}
        training["pipeline"] = {"steps": [{"name": "train"} | step]}
        place = ("training", "pipeline", "steps", 0)
        document.lines |= {place[:end]: document.line(("training",)) for end in (2, 3, 4)}
        for (top, *below), line in list(document.lines.items()):
            if top == "training" and below and below[0] in step:
                document.lines[(*place, *below)] = line
    elif pipeline is None:
        text = (
            "nothing to train: write training.pipeline.steps: [{name: ..., train_vae: true, ...}]"
        )
        text += f", or one of {', '.join(MODES)} under training for a single step"
        document.report(("training",), text)
        document.check()


def _read(document: Document, place: Place, kind: Any, value: Any) -> Any:
    """A section, or a list of them, or several by name, without what is wrong, which is reported.

    ``kind`` is their class, or the list's or dictionary's type.
    """
    inner = get_args(kind)
    if get_origin(kind) is list:
        if not isinstance(value, list) or not value:
            document.report(place, f"{dotted(place)}: {value!r:.80} is not a list of at least one")
            return []
        read = [_read(document, (*place, i), *inner, entry) for i, entry in enumerate(value)]
        # A step that lacks its name keeps its place among the others.
        return [{"name": f"step{i + 1}"} | step for i, step in enumerate(read)]
    if not isinstance(value, dict):
        if value is not None:
            document.report(place, f"{dotted(place)}: {value!r:.80} is not keys and values")
        return {}
    if inner:  # several by name
        names = get_args(inner[0]) or tuple(value)
        for name in [name for name in value if name not in names]:
            where = (*place, name)
            document.report(where, f"unknown key {dotted(where)}{nearest(name, names)}")
        named = {name: entry for name, entry in value.items() if name in names}
        return {str(n): _read(document, (*place, n), inner[1], entry) for n, entry in named.items()}
    sections, values, idle = {}, {}, {}
    for key, entry in value.items():
        where = (*place, key)
        if key not in kind.model_fields:
            instead = _instead(kind, key)
            if not instead:
                document.report(where, _unknown_key(where, kind))
            elif entry is not None and (key, entry) not in HAPPENS_ANYWAY:
                # One message for what one edit mends: leaving keys out, or writing another.
                idle.setdefault(instead.startswith("write ") and instead, {})[where] = instead
            continue
        of_key = bare_type(kind.model_fields[key].annotation)
        last = (get_args(of_key) or (of_key,))[-1]
        if isinstance(last, type) and issubclass(last, Section):
            sections[key] = _read(document, where, of_key, entry)
        else:
            values[key] = entry
    for remedy, keys in idle.items():
        text = remedy or f"leave out; {'; '.join(dict.fromkeys(keys.values()))}"
        first, *others = keys
        names = ", ".join([dotted(first), *(other[-1] for other in others)])
        verb = "mean" if others else "means"
        document.report(first, f"{names} {verb} nothing here: {text}")
    for key, about in kind.model_fields.items():
        if about.is_required() and key not in value:
            document.report(place, f"{dotted((*place, key))} is missing")
    try:
        kind(**values)
    except BadOptions as error:
        for name, text in error.problems:
            if name:  # else a section that is missing, as it is read apart
                text = text.replace("Input should be a valid", f"{values[name]!r:.80} is no")
                # In the line of a list's first entry that the message quotes.
                entries = enumerate(values[name] if isinstance(values[name], list) else [])
                wrong = [i for i, entry in entries if f"{entry!r} " in text]
                document.report((*place, name, *wrong[:1]), f"{dotted((*place, name))}: {text}")
        values = {key: entry for key, entry in values.items() if key not in dict(error.problems)}
    return values | sections


def _instead(cls: type[Section], key: str) -> str | None:
    """What to write instead of a key that means nothing in a section; None of others."""
    return next((text for c in cls.__mro__ if (text := REPLACED.get(c, {}).get(key))), None)


def _unknown_key(place: Place, cls: type[Section]) -> str:
    key, hint = place[-1], nearest(place[-1], cls.model_fields)
    if "did you mean" not in hint:
        sections = {name: bare_type(f.annotation) for name, f in PipelineFile.model_fields.items()}
        for name, section in sections.items():
            if key in section.model_fields or _instead(section, key):
                return f"unknown key {dotted(place)}: it belongs below {name}, indented"
        if key in FLAGS:
            hint = f": write {INSTEAD.get(key, f'options: {{{key}: ...}}, of a step')}"
    return f"unknown key {dotted(place)}{hint}"


def _merge_steps(content: PipelineFile, flags: Mapping[str, Any]) -> list[Step]:
    """All steps, each with what it inherits: shared values < defaults < data set < step < flags."""
    training, pipeline = content.training, content.training.pipeline
    shared = {key: value for key, value in said(training).items() if key in Settings.model_fields}
    keys = {key.flag: name for name, key in StepSection.keys().items() if key.flag in flags}
    over = {keys[flag]: flags[flag] for flag in keys}
    over["options"] = {flag: value for flag, value in flags.items() if flag not in INSTEAD}
    if "epochs" in flags and "max_steps" not in flags:
        over["steps"] = None  # which would win
    steps = []
    for index, section in enumerate(pipeline.steps):
        own, above = said(section), _merge(shared, said(pipeline.defaults))
        source = _source(content, own.get("dataset", above.get("dataset")))
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
    for name in list(values.get("options", ())):
        if flag_of(name) != name:
            value = values["options"].pop(name)
            if value is not False:  # which says what is so anyway
                values["options"][flag_of(name)] = False if value is True else value
    return values


def flag_of(name: str) -> str:
    """The flag of an option, which may be a switch that is turned off: ``no_x``."""
    return name if name in FLAGS or name[3:] not in FLAGS else name.removeprefix("no_")


def _merge(under: dict, over: Mapping) -> dict:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _source(content: PipelineFile, name: str | None) -> Source | None:
    pipeline, data = content.training.pipeline, content.data
    name = name or pipeline.default_dataset
    if name is None:
        return Source(("data",), data) if data.paths else None
    section = pipeline.datasets.get(name)
    return section and Source(("training", "pipeline", "datasets", name), section)
