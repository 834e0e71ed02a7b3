"""Names and words that are no plain text: bytes, controls, dashes at their start."""

import json
import logging
import os
import re

import pytest

from tests.dataset.latent_files import numbered, write_cache
from tests.images import TINY_MODEL
from wfimagevae.command_line import parse, run_cli
from wfimagevae.dataset import LatentDataset
from wfimagevae.engine.report import tracker
from wfimagevae.engine.report.html import write_report
from wfimagevae.export.folder import check_target
from wfimagevae.files import read_json, write_json
from wfimagevae.model import WFVAE2ImageModel
from wfimagevae.options import ListOf, Options, option
from wfimagevae.pictures.patch_maps import SUMMARY, append_summary

CAFE = os.fsdecode(b"caf\xe9")


def test_an_export_goes_where_diffusers_can_read_it(tmp_path):
    with pytest.raises(ValueError, match="is not UTF-8, which diffusers needs"):
        check_target(tmp_path / CAFE)
    check_target(tmp_path / "café 写真")


class WordOptions(Options):
    """words"""

    prompt: ListOf[str] = option([], "what to draw", "TEXT")
    exp_name: str = option("run", "its name", "NAME")


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        (["--prompt", "--a photo", "-has a dog", "- x"], ["--a photo", "-has a dog", "- x"]),
        (["--prompt=--photo"], ["--photo"]),
        (["--prompt=--a photo of --b"], ["--a photo of --b"]),
        (["--prompt", "--prompt me"], ["--prompt me"]),
        (["--prompt", "--photo"], "unknown flag --photo; .*; as a value, --prompt=--photo"),
        (["--prompt", "-photo"], "a value that begins with a dash is written --FLAG=VALUE"),
    ],
)
def test_texts_may_begin_with_dashes(words, prompt, capsys):
    """A word with blanks is never a flag; another is refused with the way to write it."""
    if isinstance(prompt, list):
        assert parse(WordOptions, words).prompt == prompt
        return
    with pytest.raises(SystemExit):
        parse(WordOptions, words)
    assert re.search(prompt, capsys.readouterr().err)


def test_names_can_do_nothing_to_a_terminal_or_to_other_lines(capfd, monkeypatch):
    """Escapes of a file's name reach neither logs nor errors raw, nor does a line it forges."""
    name = "a\x1b[2J\x9b31m\r\nerror: forged\u202e" + CAFE
    monkeypatch.setattr(logging.root, "handlers", [])

    def main(_):
        print("\x1b[2J" + CAFE)  # strict in UTF-8 locales
        logging.getLogger("wfimagevae").warning("unreadable: %s", name)
        raise ValueError(f"{name}:\n  a list's line")

    assert run_cli(main) == 2
    out, err = capfd.readouterr()
    assert out == "\\x1b[2Jcaf\\udce9\n"
    shown = r"a\x1b[2J\x9b31m\r\nerror: forged\u202ecaf\udce9"
    assert err.splitlines()[0].endswith(f"unreadable: {shown}")
    assert err.splitlines()[1:] == [f"error: {shown}:", "  a list's line"]


def test_names_that_are_not_utf8_pass_through_every_file_of_a_run(tmp_path, monkeypatch):
    """They ended training at its first validation, and reports after it."""
    run = tmp_path / CAFE
    for step in (3, 6):
        rows = [[step, f"{CAFE}.png", 1, 2, 3, 4]]
        append_summary(run / "val_patch_scores" / "summary.csv", rows)
    lines = (run / "val_patch_scores" / "summary.csv").read_text().splitlines()
    assert lines == [",".join(SUMMARY), "3,caf\\udce9.png,1,2,3,4", "6,caf\\udce9.png,1,2,3,4"]
    options = {"image_path": [CAFE], "exp_name": CAFE, "disable_csv_log": True}
    write_json(run / "options.json", options)
    assert read_json(run / "options.json") == options
    write_cache(run, [{"moments": numbered(0, 2)}])
    assert len(LatentDataset(run)) == 2
    WFVAE2ImageModel.from_config(TINY_MODEL).save_pretrained(run)
    WFVAE2ImageModel.from_pretrained(run)
    page = write_report(run, run / "report.html").read_text()
    assert "caf\\udce9" in page and run.name == CAFE

    class Backend:  # what services do with texts
        def __init__(self, kind, folder, name, config):
            json.dumps([name, config], ensure_ascii=False).encode()

        def log_images(self, step, images):
            assert [name.encode() for name in images] == [rb"val/caf\udce9"]

    monkeypatch.setattr(tracker, "_TensorBoard", Backend)
    tracking = tracker.open_tracker("tensorboard", run, CAFE, options)
    tracking.log_images(1, {f"val/{CAFE}": run / "a.png"})
    assert tracking.is_on
