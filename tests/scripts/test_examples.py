"""The shell recipes, from an empty folder, as their first comment says."""

import json
import os
import subprocess
import sys

import pytest

from tests.scripts.conftest import ROOT


@pytest.mark.slow
def test_reconstruct_evaluate_and_export_from_another_folder(tiny_vae, photos, tmp_path):
    def run(script, *flags, **settings):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | settings
        return subprocess.run(
            ["bash", str(ROOT / "examples" / script), *flags],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    model, real = {"FROM_PRETRAINED": str(tiny_vae)}, {"REAL_IMAGE_DIR": str(photos)}
    done = run("recon_image.sh", "--output_origin", RESOLUTION="48", NPROC="2", **model, **real)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "reconstructions" / "origin").rglob("*.png"))) == 5
    done = run("eval_image.sh", RESOLUTION="48", METRIC="psnr ssim", **real)
    assert done.returncode == 0, done.stderr
    metrics = tmp_path / "reconstructions-metrics.json"
    assert json.loads(metrics.read_text())["protocol"]["count"] == 5
    done = run("save_hf_model.sh", SAVE_DIR="hf", METRICS_JSON=metrics.name, **model)
    assert done.returncode == 0, done.stderr
    assert "| psnr |" in (tmp_path / "hf" / "README.md").read_text()
    done = run("recon_image.sh", RESOLUTION="", GENERATED_IMAGE_DIR="native", **model, **real)
    assert done.returncode == 0, done.stderr
    done = run("recon_image.sh", **real)
    assert done.returncode != 0 and "FROM_PRETRAINED: a Hugging Face folder" in done.stderr
