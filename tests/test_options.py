"""Option classes: flags, YAML under them, one error line for what is wrong, help in portions."""

import json
import shlex
from pkgutil import resolve_name
from typing import Literal

import pytest

from wfimagevae.command_line import parse
from wfimagevae.options import (
    BadOptions,
    Count,
    ListOf,
    Options,
    OutputFile,
    Positive,
    Several,
    Share,
    Switch,
    new_defaults,
    option,
    overrides_of,
)
from wfimagevae.task import TASKS


class RateOptions(Options):
    """rates: how fast"""

    lr: Positive = option(1e-5, "peak rate")
    batch_size: Count = option(2, "samples", "N")


class ExampleOptions(RateOptions):
    """others"""

    config: str | None = option(None, "YAML file")
    image_path: str = option(..., "images")
    network: str | None = option(None, "a file", flag="model_config")
    dropout: Share = option(0.0, "share")
    metric: ListOf[Literal["psnr", "ssim", "lpips"]] = option(["psnr"], "what to measure")
    decay: Several[Share] = option([0.9], "decays")
    window: tuple[Share, Share] = option((0.0, 1.0), "from and to")
    model: ListOf[str] = option([], "models", repeat="one")
    freeze: bool = option(False, "freeze")
    ema: bool = option(True, "average")
    compile: Switch = option(False, "compile")
    critic: overrides_of(RateOptions) = option({}, "its own rates")
    output: OutputFile | None = option(None, "a file to write")


def read(*words):
    """The options of words, with an image path."""
    return parse(ExampleOptions, ["--image_path", "x", *words])


@pytest.fixture
def read_yaml(tmp_path):
    def read(text, *words):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return parse(ExampleOptions, ["--config", str(path), *words])

    return read


def error_of(capsys, function, *arguments):
    with pytest.raises(SystemExit) as exit:
        function(*arguments)
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_command_line_wins_over_yaml_over_defaults(read_yaml):
    text = "lr: 1e-4\nbatch_size: 8\nimage_path: here\nema: false\nfreeze: true\n"
    text += "metric: [ssim, lpips]\ndecay: 0.5\nmodel_config: null\ncritic: {lr: 0.5}\n"
    options = read_yaml(text, "--batch_size", "16")
    assert (options.lr, options.batch_size, options.image_path) == (1e-4, 16, "here")
    assert (options.ema, options.freeze, options.metric) == (False, True, ["ssim", "lpips"])
    assert (options.decay, options.network, options.critic) == ([0.5], None, {"lr": 0.5})
    assert not read_yaml("image_path: x\nno_ema: true\n").ema


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("learning_rat: 1", "run.yaml: unknown key 'learning_rat'"),
        ("batch_sise: 1", "did you mean --batch_size"),
        ("batch_size: 0", "run.yaml: batch_size: 0 is not a whole number of at least 1"),
        ("batch_size: true", "True is not a whole number"),
        ("no_lr: 3", "run.yaml: unknown key 'no_lr'"),
        ("critic: true", "run.yaml: critic: True is not key=value"),
        ("ema: 3", "write true or false"),
        ("metric: psnrr", "did you mean 'psnr'"),
        ("- a\n- b", "expected 'flag: value' lines"),
        ("a: [", "run.yaml"),
    ],
)
def test_bad_yaml_is_explained(read_yaml, capsys, yaml, words):
    assert words in error_of(capsys, read_yaml, yaml, "--image_path", "x").replace("\\", "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--image_pth x", "unknown flag --image_pth; did you mean --image_path?"),
        ("--batch 3", "did you mean --batch_size?"),
        ("--dropout 1.5", "'1.5' is not a number between 0 and 1"),
        ("--lr nan", "'nan' is not a number above 0"),
        ("--batch_size two", "'two' is not a whole number"),
        ("--metric fid", "invalid choice: 'fid'"),
        ("--decay 0.9,2", "argument --decay: '2' is not a number between"),
        ("--critic lr", "'lr' is not key=value"),
        ("--critic lrr=3", "unknown key 'lrr'; did you mean lr"),
        ("--critic lr=fast", "--critic: --lr: 'fast' is not a number"),
    ],
)
def test_bad_flags_are_explained_in_one_line(capsys, line, words):
    assert words in error_of(capsys, read, *line.split())
    assert "required: --image_path" in error_of(capsys, parse, ExampleOptions, [])


def test_an_output_that_cannot_be_a_file_is_refused(tmp_path, capsys):
    fine = str(tmp_path / "new" / "file.json")
    assert read("--output", fine).output == fine
    (tmp_path / "file").touch()
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "file" / "x", "cannot be written")):
        assert f"--output: {path} {words}" in error_of(capsys, read, "--output", str(path))


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--no_ema", "ema", False),
        ("--compile", "compile", True),
        ("--compile --no_compile", "compile", False),
        ("--decay 0.9 0.99", "decay", [0.9, 0.99]),
        ("--decay 0.9,0.99", "decay", [0.9, 0.99]),
        ("--decay '0.9 0.99'", "decay", [0.9, 0.99]),
        ("--window 0.2 0.5", "window", (0.2, 0.5)),
        ("--model a --model b", "model", ["a", "b"]),
        ("--model_config f.json", "network", "f.json"),
        ("--critic lr=1e-3 batch_size=4", "critic", {"lr": 1e-3, "batch_size": 4}),
    ],
)
def test_words_become_values(line, name, value):
    assert getattr(read(*shlex.split(line)), name) == value


def test_objects_are_made_in_code_as_well_with_all_that_is_wrong_at_once(tmp_path):
    options = ExampleOptions(image_path=tmp_path, lr=1)
    assert (options.image_path, options.values()["model_config"]) == (str(tmp_path), None)
    assert options.changed(lr=0.5).lr == 0.5 and options.part(RateOptions) == RateOptions(lr=1)
    with pytest.raises(BadOptions) as error:
        ExampleOptions(lr=-1, batch_size=0, imagepath="x")
    assert [name for name, _ in error.value.problems] == ["lr", "batch_size", "", ""]

    @new_defaults(lr=1e-6)
    class Slower(RateOptions):
        """Other defaults."""

    assert (Slower().lr, RateOptions().lr) == (1e-6, 1e-5)


def help_of(capsys, cls, *words):
    with pytest.raises(SystemExit) as exit:
        parse(cls, ["--help", *words])
    assert exit.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_help_shows_what_a_beginner_needs_a_group_or_all(capsys, task):
    options = resolve_name(TASKS[task])
    everything = len(options.by_flag())
    short, full = help_of(capsys, options), help_of(capsys, options, "all")
    assert "--help all" in short and "--help GROUP" in short and "'early stop'" in short
    assert 20 <= short.count("\n  --") <= 40 and full.count("\n  --") == everything
    group = help_of(capsys, options, "early stop")
    assert group.count("\n  --") == 3 and "--stop_below" in group
    assert "no such group of flags; did you mean logging?" in error_of(
        capsys, parse, options, ["--help", "loging"]
    )


@pytest.mark.parametrize("task", TASKS)
def test_saved_options_are_those_of_the_flags_and_read_back(task):
    given = {"image_path": ["x"]} if task == "vae" else {}
    options = resolve_name(TASKS[task])(**given, ema_decay=[0.9, 0.99], model_config="f.json")
    values = json.loads(json.dumps(options.values()))
    assert values.keys() == resolve_name(TASKS[task]).by_flag().keys()
    assert resolve_name(TASKS[task])(**values) == options
