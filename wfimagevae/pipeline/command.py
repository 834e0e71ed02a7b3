"""``--pipeline FILE`` and the flags beside it. No torch here before a file is found to be right."""

import importlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from wfimagevae.command_line import Parser
from wfimagevae.options import BadOptions, nearest
from wfimagevae.pipeline.checks import load_pipeline
from wfimagevae.pipeline.document import PipelineError
from wfimagevae.pipeline.fluxflow import OPTIONS, PipelineFile
from wfimagevae.pipeline.instead import INSTEAD, MAY_WIN, OF_ONE_STEP
from wfimagevae.pipeline.options import PipelineOptions


def run_file(argv: Sequence[str]) -> int:
    """Checks a pipeline's file and trains its steps, or prints what it would train."""
    options, flags = _read_words(argv)
    if options.print_schema:
        print(json.dumps(schema(), indent=2))
        return 0
    pipeline = load_pipeline(options.pipeline, flags)
    for flag in flags:
        if not any(flag in OPTIONS[step.task].by_flag() for step in pipeline.steps):
            raise PipelineError(f"--{flag}: no step of {options.pipeline} has that flag")
    if options.validate_pipeline:
        plan = importlib.import_module("wfimagevae.pipeline.plan")
        print("\n".join(plan.describe_plan(pipeline)))
        return 0
    importlib.import_module("wfimagevae.pipeline.run").run_pipeline(pipeline)
    return 0


def _read_words(argv: Sequence[str]) -> tuple[PipelineOptions, dict[str, Any]]:
    """The pipeline's own flags, and values of those of its steps' trainings."""
    parser = Parser(PipelineOptions, description="Trains the steps of a pipeline.")
    parsers = [parser, *map(Parser, OPTIONS.values())]
    own, flags = [], {}
    starts = [i for i, word in enumerate(argv) if word.startswith("--")]
    for start, end in pairwise([*starts, len(argv)]):
        flag = argv[start].removeprefix("--").split("=")[0]
        having = next((each for each in parsers if flag in each.flags()), None)
        if having is None:
            names = [name for each in parsers for name in each.flags()]
            parser.error(f"unknown flag --{flag}{nearest(flag, names, '--')}")
        if having is parser:
            own += argv[start:end]
            continue
        ((name, words),) = having.read_words(argv[start:end]).items()
        instead = INSTEAD.get(name) or OF_ONE_STEP.get(name)
        if instead and name not in MAY_WIN:
            parser.error(f"--{name} does not go with --pipeline: in the file, write {instead}")
        needed = {n: [] for n, field in having.cls.by_flag().items() if field.is_required()}
        try:
            flags[name] = having.cls(**needed | {name: words}).values()[name]
        except BadOptions as error:
            parser.error(f"argument --{name}: {error.problems[0][1]}")
    options = PipelineOptions(**parser.read_words([*argv[: starts[0]], *own]))
    if not (options.pipeline or options.print_schema):
        raise ValueError("--validate_pipeline goes with --pipeline FILE")
    return options, flags


def schema() -> dict[str, Any]:
    """The JSON schema of pipeline files: their keys, and the flags that ``options`` take."""
    content = PipelineFile.model_json_schema()
    sections = content["$defs"]
    flags = {}
    for cls in OPTIONS.values():
        about = cls.model_json_schema(by_alias=True)
        sections |= about.get("$defs", {})
        flags |= about["properties"]
    flags = {name: about for name, about in flags.items() if name not in INSTEAD}
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
