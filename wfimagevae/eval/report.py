"""What an evaluation hands back: a table for people, JSON for programs."""

import math
from collections.abc import Mapping, Sequence

from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.protocol import protocol_hash


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; all but the first are set to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(header))]
    lines = [
        [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))]
        for row in table
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def format_value(name: str, value: float | None) -> str:
    """A metric's value as a table shows it; None is n/a."""
    if value is None:
        return "n/a"
    return f"{value:.2f}" if name == "psnr" else f"{value:.4f}"


def evaluation_json(evaluator: Evaluator, values: Mapping[str, float], protocol: dict) -> dict:
    """What an evaluation's JSON file holds.

    A metric is null where its value is infinite (``notes`` says why) or its weights are missing
    (``unavailable`` says how to get them).
    """
    return {
        **{name: _finite_or_none(values.get(name)) for name in evaluator.names},
        "unavailable": evaluator.unavailable,
        "notes": evaluator.notes,
        "protocol": protocol,
        "protocol_hash": protocol_hash(protocol),
    }


def evaluation_table(evaluator: Evaluator, values: Mapping[str, float]) -> str:
    """The same for a person: a table, and below it what needs saying."""
    rows = [[name, format_value(name, values.get(name))] for name in evaluator.names]
    lines = [markdown_table(["metric", f"{evaluator.count} images"], rows)]
    lines += [f"{name}: {note}" for name, note in evaluator.notes.items()]
    lines += [f"{name} is unavailable: {how}" for name, how in evaluator.unavailable.items()]
    return "\n".join(lines)


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
