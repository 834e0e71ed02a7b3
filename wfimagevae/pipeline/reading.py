"""From a pipeline file to its checked content. No torch here."""

from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from wfimagevae.pipeline.document import Document, Place, dotted, nearest, read_document
from wfimagevae.pipeline.schema import PipelineFile, Step
from wfimagevae.pipeline.superseded import replacement

_PLAIN = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
}
_LENGTHS = {"too_short": ("least", "min_length"), "too_long": ("most", "max_length")}
# What says that a step trains.
_MODES = ("train_vae", "gan_training", "train_diff", "train_diff_full")


def read_pipeline(path: str | Path) -> tuple[Document, PipelineFile | None]:
    """A file's content, as far as its keys and types go.

    Args:
        path: The YAML file.

    Returns:
        The document with the problems found so far, and the content without what is wrong, for
        further checks; None where too little is left.

    Raises:
        PipelineError: the file cannot be read, is not YAML, or holds no pipeline at all.
    """
    document = read_document(path)
    if not isinstance(document.data, dict):
        document.report((), "expected sections: model, data, training, output")
        document.check()
    _check_form(document)
    content = document.data
    for _ in range(3):
        try:
            return document, PipelineFile.model_validate(content)
        except ValidationError as error:
            wrong = _report(document, error)
            content = _without(content, wrong)
    return document, None


def _check_form(document: Document) -> None:
    """Mistakes in the file's form whose consequences would say nothing; one step may stand flat."""
    training = document.data.get("training")
    if not isinstance(training, dict):
        document.report(("training",), "training.pipeline.steps is missing: nothing to train")
        document.check()
    pipeline = training.get("pipeline")
    if isinstance(pipeline, list):
        document.report(
            ("training", "pipeline"),
            "training.pipeline is a bare list; write its steps under a key: pipeline: {steps: ...}",
        )
        document.check()
    if pipeline is None and any(mode in training for mode in _MODES):
        _make_step(document)
    elif pipeline is None:
        document.report(
            ("training",),
            "nothing to train: write training.pipeline.steps: [{name: ..., train_vae: true, ...}], "
            f"or one of {', '.join(_MODES)} under training for a single step",
        )
        document.check()


def _make_step(document: Document) -> None:
    """Takes what a flat file (FluxFlow's) says under ``training`` as its one step's own."""
    training, place = document.data["training"], ("training", "pipeline", "steps", 0)
    step = {key: training.pop(key) for key in Step.model_fields if key in training}
    training["pipeline"] = {"steps": [{"name": "train"} | step]}
    document.lines |= {place[:end]: document.line(("training",)) for end in (2, 3, 4)}
    for (top, *below), line in list(document.lines.items()):
        if top == "training" and below and below[0] in step:
            document.lines[(*place, *below)] = line


def _without(content: Any, wrong: set[Place], place: Place = ()) -> Any:
    """A copy of the content that lacks what stands at some places."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if (*place, key) not in wrong}
        return {key: _without(value, wrong, (*place, key)) for key, value in kept.items()}
    if isinstance(content, list):
        return [
            _without(_named(value, i) if (*place, i) in wrong else value, wrong, (*place, i))
            for i, value in enumerate(content)
            if (*place, i) not in wrong or isinstance(value, dict)
        ]
    return content


def _named(step: dict, index: int) -> dict:
    """A step that lacks its name keeps its place among the others."""
    return {"name": f"step{index + 1}"} | step


def _report(document: Document, error: ValidationError) -> set[Place]:
    """pydantic's findings as problems of the document; alternatives of one value make one.

    Returns:
        Where they are.
    """
    wanted: dict[Place, tuple[list[str], Any]] = {}
    wrong: set[Place] = set()
    for entry in error.errors():
        missing = entry["type"] == "missing"
        place = _known(document, entry["loc"][:-1] if missing else entry["loc"])
        wrong.add(place)
        if entry["type"] == "extra_forbidden":
            document.report(place, _unknown_key(place))
        elif missing:
            absent = (*place, entry["loc"][-1])
            if absent not in document.lines:  # else it was refused, and left out
                document.report(place, f"{dotted(absent)} is missing")
        else:
            expected, _ = wanted.setdefault(place, ([], entry["input"]))
            expected.append(_expected(entry))
    for place, (expected, value) in wanted.items():
        listed = " or ".join(dict.fromkeys(expected))
        document.report(place, f"{dotted(place)} must be {listed}, got {value!r:.80}")
    return wrong


def _known(document: Document, loc: Place) -> Place:
    """The part of pydantic's location that is in the document."""
    place: Place = ()
    for part in loc:
        if (*place, part) in document.lines:
            place = (*place, part)
    return place


def _unknown_key(place: Place) -> str:
    instead = replacement(place)
    if instead:
        return f"{dotted(place)} means nothing here: {instead}"
    return f"unknown key {dotted(place)}{nearest(place[-1], _keys_at(place[:-1]))}"


def _expected(entry: dict) -> str:
    if entry["type"] in _PLAIN:
        return _PLAIN[entry["type"]]
    if entry["type"] in _LENGTHS:
        which, key = _LENGTHS[entry["type"]]
        return f"a list of at {which} {entry['ctx'][key]}"
    if entry["type"] == "literal_error":
        expected = str(entry["ctx"]["expected"])
        if isinstance(entry["input"], str):
            names = [name.strip().strip("'") for name in expected.replace(" or ", ",").split(",")]
            hint = nearest(entry["input"], names)
            return f"{expected} ({hint[2:]})" if "mean" in hint else expected
        return expected
    text = entry["msg"].removeprefix("Input should be ").removeprefix("Input should ")
    text = text.removeprefix("String should ").removeprefix("List should ")
    return text.replace("match pattern", "text that matches")


def _keys_at(place: Place) -> list[str]:
    """The keys that the schema has at a place."""
    kind: Any = PipelineFile
    for part in place:
        kind = _child(kind, part)
    return list(kind.model_fields)


def _child(kind: Any, part: str | int) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _section(kind.model_fields[part].annotation)
    return _section(get_args(kind)[-1])  # of a list its items, of a mapping its values


def _section(annotation: Any) -> Any:
    """The one section among a key's alternatives."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _section(kinds[0])
    if hasattr(annotation, "__metadata__"):
        return _section(get_args(annotation)[0])
    return annotation
