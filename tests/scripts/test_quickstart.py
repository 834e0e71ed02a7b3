"""The quick start's promises about files and verdicts; `.ci/run` runs the whole of it."""

import json
from pathlib import Path

from scripts import quickstart
from scripts.quickstart import MARKER, make_folder, run_command
from tests.refusals import refused


def photographs_of(manifest):
    return [json.loads(line)["image_path"] for line in manifest.read_text().splitlines()]


def test_no_scene_is_on_both_sides(tmp_path):
    quickstart.copy_photographs(tmp_path)
    train = photographs_of(tmp_path / "train.jsonl")
    held_out = photographs_of(tmp_path / "val.jsonl")
    assert len(held_out) >= 2
    assert len({scene(path) for path in train}) >= 5
    assert not {scene(path) for path in train} & {scene(path) for path in held_out}
    assert all((tmp_path / path).is_file() for path in train + held_out)


def scene(path):
    """Colour orders and the two views of a stereo pair are one scene."""
    name = Path(path).stem.split("-")[0]
    return name.removesuffix("_left").removesuffix("_right")


def test_only_its_own_folder_is_made_anew(tmp_path, capsys):
    folder = tmp_path / "quickstart"
    make_folder(folder)
    (folder / "old.txt").touch()
    make_folder(folder)
    assert [path.name for path in folder.iterdir()] == [MARKER]
    assert "removing" in capsys.readouterr().out
    (tmp_path / "thesis.tex").touch()
    refused("not made by the quick start", make_folder, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_full_run_must_beat_the_baseline_in_both_figures():
    for psnr, ssim, status in ((26.0, 0.8, 0), (26.0, 0.6, 1), (24.0, 0.8, 1)):
        scores = {"bicubic": {"psnr": 25.0, "ssim": 0.7}, "reconstructed": {"psnr": psnr}}
        scores["reconstructed"]["ssim"] = ssim
        assert quickstart.check(scores, short=False) == status
        assert quickstart.check(scores, short=True) == 0


def test_a_command_that_fails_stops_the_quick_start():
    refused("ended with status 3", run_command, ["bash", "-c", "exit 3"])
