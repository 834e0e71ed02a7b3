"""YAML of strangers: it cannot blow up, surprise or run anything, whichever command reads it."""

import pytest

from tests.dataset.shard_files import write_shards
from tests.refusals import refused
from wfimagevae.command_line import parse
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.options import StreamOptions, VaeDataOptions
from wfimagevae.dataset.shards.specs import expand_shards
from wfimagevae.options import option
from wfimagevae.pipeline.steps import PipelineError, read_document
from wfimagevae.yaml_files import read_yaml


class Words(VaeDataOptions, StreamOptions):
    """words"""

    config: str | None = option(None, "YAML file")
    name: str = option("", "a text")


def chain(first, line, copies):
    """Lines of which each has the one before, some times."""
    later = [line.replace("B", ", ".join([f"*a{i - 1}"] * copies)) for i in range(1, 80)]
    return "\n".join(
        [f"a0: &a0 {first}", *(f"a{i}: &a{i} {text}" for i, text in enumerate(later, 1))]
    )


REFUSED = [
    (chain("[x]", "[B]", 8), "aliases, more than 100,000 values"),
    (chain("{x: 1}", "{<<: [B]}", 8), "aliases, more than 100,000 values"),
    (chain("[x]", "[B]", 1), "nested deeper"),
    ("x: " + "[" * 3000, "line 1: not YAML: nested deeper than 50 levels"),
    ("x:\n" + "\n".join("- " * i for i in range(1100)), "nested deeper"),
    ("name: x\n? [a, b]\n: 1", "line 2: not YAML: a key is text"),
    ("a: &a [*a]", "contains itself"),
    ("x: !!python/object/apply:os.system [touch x]", "could not determine a constructor"),
    ("x: !!timestamp y", "could not determine a constructor"),
    ('x: "\\UFFFFFFFF"', "not YAML"),
    ("x: !!map [a]", "expected a mapping"),
    ("x: 1\nx: 2", "x is given twice, first in line 1"),
    ("x: a\0b", "holds a NUL"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_yaml_cannot_blow_up(tmp_path, capsys, text, reason):
    """yaml/pyyaml #235, #895 and #843: aliases, nesting, escapes."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit):
        parse(Words, ["--config", str(path)])
    told = capsys.readouterr().err
    assert reason in told and "run.yaml" in told and told.count("\n") == 1
    if "twice" not in reason:  # of which a pipeline's file tells with all else
        refused(rf"(?s)run.yaml: .*{reason}", read_document, path, error=PipelineError)


def test_values_are_what_they_look_like(tmp_path):
    """yaml/pyyaml #272 and #395: no number of base 60, 16 or 8, no date, no key but text."""
    path = tmp_path / "run.yaml"
    texts = ["12:30:45", "0x1F", "0b11", "017", "2024-01-01", "1_0:0", "=", "."]
    numbers = {"1e-4": 1e-4, "1_000": 1000, "-.5": -0.5, "1.": 1.0, "10": 10, "+0": 0}
    path.write_text("x: [" + ", ".join([*texts, *numbers]) + "]\n1: a\ntrue: b\n~: c\n2.50: d")
    values = {"1": "a", "true": "b", "~": "c", "2.50": "d"}
    assert read_yaml(path) == read_document(path).data
    assert read_yaml(path) == {"x": [*texts, *numbers.values()]} | values
    path.write_bytes("name: 0x1F\nimage_path: ünten".encode("utf-16"))
    options = parse(Words, ["--config", str(path)])
    assert (options.name, options.image_path) == ("0x1F", ["ünten"])


@pytest.mark.parametrize("spec", ["pipe:cat {}", "p{{i,i}}pe:cat {}", "{}::pipe:cat {}"])
def test_a_file_is_never_a_command(tmp_path, capsys, spec):
    """A pipe in a file runs only where the command line says that such may."""
    (shard,) = write_shards(tmp_path, [1])
    spec = spec.format(shard, shard)
    path = tmp_path / "run.yaml"
    assert expand_shards(spec)  # of a command line
    path.write_text(f"image_path: ['{spec}']")
    (source,) = parse(Words, ["--config", str(path)]).image_path
    refused("a file is never a command; give --allow_pipe", expand_shards, source)
    assert parse(Words, ["--config", str(path), "--allow_pipe"]).allow_pipe
    assert any(part.startswith("pipe:") for part in expand_shards(source, allow_pipe=True))
    path.write_text("allow_pipe: true")
    with pytest.raises(SystemExit):
        parse(Words, ["--config", str(path), "--image_path", "x"])
    assert "allow_pipe: stands on the command line, never in a file" in capsys.readouterr().err
    (tmp_path / "list.jsonl").write_text('{"path": "pipe:cat x"}')
    refused("list.jsonl:1: expected an object with a path", index_images, tmp_path / "list.jsonl")
