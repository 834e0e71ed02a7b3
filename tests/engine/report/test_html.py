"""The report of a run: self-contained, complete, and nothing of it taken for markup."""

import json
import re

import pytest
from PIL import Image

from wfimagevae.engine.report.html import write_report


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "a-run"
    for name in ("original", "reconstructed/step-00000010", "reconstructed/step-00000020"):
        (folder / "val_images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "val_images" / name / "0000-cat.png")
    (folder / "options.json").write_text(json.dumps({"lr": 1e-5, "image_path": "<b>&</b>"}))
    (folder / "training_losses.csv").write_text("step,train/rec_loss_per_pixel\n10,0.5\n20,0.25\n")
    (folder / "validation.jsonl").write_text('{"step": 20, "val/psnr": 23.5, "val/ssim": null}\n')
    (folder / "metrics.jsonl").write_text('{"step": 10, "gpu/power_w": 300.0}\n' * 3)
    return folder


def test_report_shows_the_run_and_needs_no_other_file(run_dir):
    page = write_report(run_dir, run_dir / "report.html").read_text()
    assert "<h1>a-run</h1>" in page
    assert "<b>23.5</b><span>val/psnr</span>" in page
    assert "<b>0.25</b><span>train/rec_loss_per_pixel</span>" in page
    assert "<td>power_w</td><td>300</td>" in page
    assert "step-00000020" in page
    assert "step-00000010" not in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 3  # a page of curves, an original, its reconstruction
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://", page)
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in page and "<b>&</b>" not in page  # text, not markup


def test_a_run_that_has_just_begun_has_a_report(tmp_path):
    (tmp_path / "options.json").write_text('{"lr": 1e-5}')
    assert "<img" not in write_report(tmp_path, tmp_path / "report.html").read_text()


def test_losses_are_found_from_another_folder(run_dir, tmp_path, monkeypatch, caplog):
    options = {"csv_log_path": "logs/own.csv"}
    (run_dir / "options.json").write_text(json.dumps(options))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "own.csv").write_text("step,train/rec_loss_per_pixel\n30,0.125\n")
    monkeypatch.chdir(tmp_path)
    page = write_report(run_dir, tmp_path / "report.html").read_text()
    assert "<b>0.125</b>" in page and not caplog.records
    monkeypatch.chdir(run_dir)
    page = write_report(run_dir, tmp_path / "report.html").read_text()
    said = f"logs/own.csv does not exist; the curves are those of {run_dir / 'training_losses.csv'}"
    assert "<b>0.25</b>" in page and said in page and said in caplog.text
    (run_dir / "training_losses.csv").unlink()
    page = write_report(run_dir, tmp_path / "report.html").read_text()
    assert f"looked for logs/own.csv, {run_dir / 'own.csv'}, {run_dir / 'training_los'}" in page
    (run_dir / "options.json").write_text(json.dumps({"disable_csv_log": True}))
    assert "no losses" not in write_report(run_dir, tmp_path / "report.html").read_text()


@pytest.mark.parametrize("text", ['{"lr": ', "[1]", "\xff"])
def test_broken_options_are_named(run_dir, text):
    (run_dir / "options.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        ValueError, match=r"options\.json (is not JSON|is not UTF-8|holds no JSON object)"
    ):
        write_report(run_dir, run_dir / "report.html")
