"""The shell recipes, from an empty folder, as their first comment says."""

import json
import os
import subprocess
import sys

import pytest

from tests.scripts.conftest import ROOT


@pytest.mark.slow
def test_reconstruct_evaluate_and_export_from_another_folder(tiny_vae, photos, tmp_path):
    def run(script, *flags, is_refused=False, **settings):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | settings
        words = ["bash", str(ROOT / "examples" / script), *flags]
        how = {"cwd": tmp_path, "env": environment, "timeout": 240}
        done = subprocess.run(words, capture_output=True, text=True, **how)
        assert (done.returncode != 0) == is_refused, done.stderr
        return done.stderr

    model, real = {"FROM_PRETRAINED": str(tiny_vae)}, {"REAL_IMAGE_DIR": str(photos)}
    run("recon_image.sh", "--output_origin", RESOLUTION="48", NPROC="2", **model, **real)
    assert len(list((tmp_path / "reconstructions" / "origin").rglob("*.png"))) == 5
    run("eval_image.sh", RESOLUTION="48", METRIC="psnr ssim", **real)
    metrics = tmp_path / "reconstructions-metrics.json"
    assert json.loads(metrics.read_text())["protocol"]["count"] == 5
    run("save_hf_model.sh", SAVE_DIR="hf", METRICS_JSON=metrics.name, **model)
    assert "| psnr |" in (tmp_path / "hf" / "README.md").read_text()
    run("recon_image.sh", RESOLUTION="", GENERATED_IMAGE_DIR="native", **model, **real)
    told = run("recon_image.sh", is_refused=True, **real)
    assert "FROM_PRETRAINED: a Hugging Face folder" in told
