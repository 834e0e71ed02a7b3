"""Tables and JSON of evaluated generators; every figure stands beside its protocol."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from wfimagevae.eval.protocol import protocol_hash
from wfimagevae.eval.report import format_value, markdown_table

_COLUMNS = ("fid", "kid", "precision", "recall", "energy_distance")


def result_json(
    values: Mapping[str, float], sampling: Mapping, protocol: Mapping, notes: Mapping
) -> dict:
    """One measurement.

    Args:
        values: Metric -> figure; an unavailable metric is null in the JSON.
        sampling: How the samples came about: sampler, steps, NFE, guidance, labels, seed, ...
        protocol: Against what and how they were measured; figures of one hash compare.
        notes: Metric -> what a reader should know.
    """
    packages = ["torch", "numpy", "pillow"]
    packages += ["torch-fidelity"] if "features" in protocol else []
    protocol = dict(protocol) | {"versions": {name: version(name) for name in packages}}
    return {
        **values,
        "sampling": dict(sampling),
        "notes": dict(notes),
        "protocol": protocol,
        "protocol_hash": protocol_hash(protocol),
    }


def results_table(results: Sequence[Mapping], unavailable: Mapping[str, str]) -> str:
    """The measurements for a person: a row each, and below what needs saying."""
    columns = [name for name in _COLUMNS if any(name in result for result in results)]
    header, rows = _sampling_columns(results)
    header += [name.replace("_", " ") for name in columns]
    for row, result in zip(rows, results, strict=True):
        row += [_cell(result, name) for name in columns]
    lines = [markdown_table(header, rows)]
    notes = {name: note for result in results for name, note in result["notes"].items()}
    lines += [f"{name}: {note}" for name, note in notes.items()]
    lines += [f"{name} is unavailable: {how}" for name, how in unavailable.items()]
    return "\n".join(lines)


def _sampling_columns(results: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    if "sampler" not in results[0]["sampling"]:
        counts = [f"{result['protocol']['generated_count']} samples" for result in results]
        return ["generated"], [[count] for count in counts]
    rows = [
        [
            sampling["sampler"],
            str(sampling["steps"]),
            f"{sampling['nfe']:g}",
            f"{sampling['guidance']['scale']:g}",
        ]
        for sampling in (result["sampling"] for result in results)
    ]
    return ["sampler", "steps", "NFE", "guidance"], rows


def _cell(result: Mapping, name: str) -> str:
    if name == "kid" and name in result:
        return f"{result['kid']:.5f} ± {result['kid_std']:.5f}"
    return format_value(name, result.get(name))
