"""``--pipeline FILE`` and the flags beside it. No torch here before a file is found to be right."""

import importlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import create_model

from wfimagevae.command_line import Parser
from wfimagevae.options import BadOptions
from wfimagevae.pipeline.checks import load_pipeline
from wfimagevae.pipeline.fluxflow import OPTIONS, PipelineFile
from wfimagevae.pipeline.instead import INSTEAD, MAY_WIN, OF_ONE_STEP
from wfimagevae.pipeline.options import PipelineOptions
from wfimagevae.pipeline.steps import PipelineError

OWN = PipelineOptions.model_fields.keys()
# The flags of a pipeline and of all kinds of trainings.
Words = create_model(
    "Words",
    __base__=PipelineOptions,
    **{n: (f.annotation, f) for cls in OPTIONS.values() for n, f in cls.model_fields.items()},
)


def run_file(argv: Sequence[str]) -> bool:
    """Checks a pipeline's file and trains its steps, or prints what it would train.

    False if a signal stopped it.
    """
    words, flags = _read_words(argv)
    if words.print_schema:
        print(json.dumps(schema(), indent=2))
        return True
    if not words.pipeline:
        raise ValueError("--validate_pipeline goes with --pipeline FILE")
    pipeline = load_pipeline(words.pipeline, flags)
    for flag in flags:
        if not any(flag in OPTIONS[step.task].by_flag() for step in pipeline.steps):
            raise PipelineError(f"--{flag}: no step of {words.pipeline} has that flag")
    if words.validate_pipeline:
        plan = importlib.import_module("wfimagevae.pipeline.plan")
        print("\n".join(plan.describe_plan(pipeline)))
        return True
    return importlib.import_module("wfimagevae.pipeline.run").run_pipeline(pipeline)


def _read_words(argv: Sequence[str]) -> tuple[PipelineOptions, dict[str, Any]]:
    """All flags with their values, and of those that are given, the ones of steps' trainings."""
    parser = Parser(Words, "Trains the steps of a pipeline.")
    given = parser.read_words(argv)
    flags = [name for name in given if name not in OWN]
    for name in flags:
        instead = INSTEAD.get(name) or OF_ONE_STEP.get(name)
        if instead and name not in MAY_WIN:
            parser.error(f"--{name} does not go with --pipeline: in the file, write {instead}")
    needed = {name: [] for name, field in Words.by_flag().items() if field.is_required()}
    try:
        words = Words(**needed | given)
    except BadOptions as error:
        name, text = error.problems[0]
        parser.error(f"argument --{name}: {text}")
    values = words.values()
    return words, {name: values[name] for name in flags}


def schema() -> dict[str, Any]:
    """The JSON schema of pipeline files: their keys, and the flags that ``options`` take."""
    content = PipelineFile.model_json_schema()
    sections = content["$defs"]
    flags = Words.model_json_schema()["properties"]
    flags = {n: about for n, about in flags.items() if n not in INSTEAD.keys() | OWN}
    for name, section in sections.items():
        if "options" in section.get("properties", {}):
            alone = () if name == "StepSection" else OF_ONE_STEP
            section["properties"]["options"] |= {
                "properties": {n: about for n, about in flags.items() if n not in alone},
                "patternProperties": {"^no_": {"type": "boolean"}},
                "additionalProperties": False,
            }
    # A single step may stand flat under ``training``.
    training = sections["TrainingSection"]
    training["properties"] = sections["StepSection"]["properties"] | training["properties"]
    del training["required"]
    return content
