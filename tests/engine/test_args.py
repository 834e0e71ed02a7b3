"""Command lines: strict, YAML under flags, suggestions."""

import pytest

from wfimagevae.engine.args import (
    Parser,
    add_config_arg,
    add_overrides,
    add_several,
    add_switch,
    output_file,
    parse_with_config,
    positive_int,
    probability,
)


@pytest.fixture
def parser():
    parser = Parser(prog="x")
    add_config_arg(parser)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--batch_size", type=positive_int, default=2)
    parser.add_argument("--dropout", type=probability, default=0.0)
    parser.add_argument("--image_path", required=True)
    parser.add_argument("--metric", nargs="+", default=["psnr"])
    add_several(parser, "--decay", probability, [0.9], "decays")
    parser.add_argument("--freeze", action="store_true")
    add_switch(parser, "--ema", True, "average")
    return parser


def parse(parser, tmp_path, yaml, *argv):
    path = tmp_path / "run.yaml"
    path.write_text(yaml)
    return parse_with_config(parser, ["--config", str(path), *argv])


def test_command_line_wins_over_yaml_over_defaults(parser, tmp_path):
    args = parse(
        parser,
        tmp_path,
        "lr: 1e-4\nbatch_size: 8\nimage_path: here\nema: false\nfreeze: true\n"
        "metric: [ssim, lpips]\n",
        "--batch_size",
        "16",
    )
    assert (args.lr, args.batch_size, args.image_path) == (1e-4, 16, "here")
    assert (args.ema, args.freeze, args.metric) == (False, True, ["ssim", "lpips"])


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("learning_rat: 1", "unknown key 'learning_rat'"),
        ("batch_sise: 1", "did you mean --batch_size"),
        ("batch_size: 0", "0 is not a whole number of at least 1"),
        ("ema: 3", "write true or false"),
        ("- a\n- b", "expected 'flag: value' lines"),
        ("a: [", "run.yaml"),
    ],
)
def test_bad_yaml_is_explained(parser, tmp_path, capsys, yaml, words):
    with pytest.raises(SystemExit) as exit:
        parse(parser, tmp_path, yaml, "--image_path", "x")
    assert exit.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--image_pth", "x"], "unknown flag --image_pth; did you mean --image_path?"),
        (["--batch", "3", "--image_path", "x"], "did you mean --batch_size?"),
        (["--image_path", "x", "--dropout", "1.5"], "1.5 is not a number between 0 and 1"),
        (["--image_path", "x", "--batch_size", "two"], "'two' is not a whole number"),
        ([], "required: --image_path"),
    ],
)
def test_bad_flags_are_explained_in_one_line(parser, capsys, argv, words):
    with pytest.raises(SystemExit) as exit:
        parser.parse_args(argv)
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert words in error
    assert error.count("\n") == 1


def test_an_output_that_cannot_be_a_file_is_refused(parser, tmp_path, capsys):
    parser.add_argument("--output", type=output_file)
    fine = str(tmp_path / "new" / "file.json")
    assert parser.parse_args(["--image_path", "x", "--output", fine]).output == fine
    (tmp_path / "file").touch()
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "file" / "x", "cannot be written")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--image_path", "x", "--output", str(path)])
        assert f"--output: {path} {words}" in capsys.readouterr().err


def test_switches_go_both_ways(parser):
    assert parser.parse_args(["--image_path", "x", "--no_ema"]).ema is False
    assert parser.parse_args(["--image_path", "x", "--ema"]).ema is True


@pytest.mark.parametrize("words", [["0.9", "0.99"], ["0.9,0.99"], ["0.9 0.99"]])
def test_several_numbers_come_in_several_words_or_in_one(parser, words):
    args = parser.parse_args(["--image_path", "x", "--decay", *words])
    assert args.decay == [0.9, 0.99]
    assert parser.parse_args(["--image_path", "x"]).decay == [0.9]
    assert parser.parse_args(["--image_path", "x", "--decay=0.5"]).decay == [0.5]


def test_several_numbers_are_checked_one_by_one_and_come_from_yaml(parser, tmp_path, capsys):
    assert parse(parser, tmp_path, "image_path: x\ndecay: [0.5, 0.7]\n").decay == [0.5, 0.7]
    with pytest.raises(SystemExit):
        parser.parse_args(["--image_path", "x", "--decay", "0.9,2"])
    assert "2 is not a number between 0 and 1" in capsys.readouterr().err


@pytest.fixture
def overriding():
    parser = Parser(prog="x")
    add_config_arg(parser)
    add_overrides(parser, "--critic", lambda known: known.add_argument("--lr", type=float), "own")
    return parser


def test_overrides_are_gathered_and_typed_by_the_flags_they_replace(overriding, tmp_path):
    assert overriding.parse_args([]).critic == {}
    assert overriding.parse_args(["--critic", "lr=1e-3"]).critic == {"lr": 1e-3}
    path = tmp_path / "x.yaml"
    path.write_text("critic: {lr: 0.5}\n")
    assert parse_with_config(overriding, ["--config", str(path)]).critic == {"lr": 0.5}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lr", "'lr' is not key=value"),
        ("lrr=3", "unknown key 'lrr'; did you mean lr"),
        ("lr=fast", "--lr: invalid float value: 'fast'"),
    ],
)
def test_bad_overrides_are_explained(overriding, capsys, word, message):
    with pytest.raises(SystemExit):
        overriding.parse_args(["--critic", word])
    assert message in capsys.readouterr().err
    overriding.raises = True
    with pytest.raises(ValueError, match="critic"):
        overriding.parse_args(["--critic", word])
