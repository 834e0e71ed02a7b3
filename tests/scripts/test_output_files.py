"""A place that takes no file is refused before any work for it; reports make their folder."""

import json

import pytest

from scripts import (
    benchmark_vae,
    eval_generation,
    eval_image,
    generate,
    latent_stats,
    plot_training,
)
from tests.refusals import refused


def test_a_folder_is_no_output_file(tmp_path, capsys):
    for script, words in (
        (eval_image, "--real_image_dir a --generated_image_dir b --output_json"),
        (benchmark_vae, "--real_image_dir a --model WFVAE2Image:b --output"),
        (latent_stats, "--real_image_dir a --from_pretrained b --output_json"),
        (plot_training, "a --output"),
        (eval_generation, "--dataset shapes --from_pretrained b --output_json"),
        (generate, "--from_pretrained b --npz"),
    ):
        with pytest.raises(SystemExit):
            script.main([*words.split(), str(tmp_path)])
        assert f"{tmp_path} is a folder; name a file" in capsys.readouterr().err


def test_a_report_of_a_run_goes_into_a_folder_that_does_not_exist_yet(tmp_path, capsys):
    run_dir, output = tmp_path / "run", tmp_path / "new" / "folder" / "report.html"
    run_dir.mkdir()
    (run_dir / "options.json").write_text(json.dumps({"task": "flow", "lr": 0.5, "seed": 1234}))
    plot_training.main([str(run_dir), "--output", str(output)])
    assert capsys.readouterr().out.strip() == str(output)
    changed, unchanged = output.read_text().split("Options at their defaults")
    assert "<td>lr</td><td>0.5</td><td>0.0001</td>" in changed  # first what was changed
    assert "<td>seed</td><td>1234</td>" in unchanged
    refused("no run's folder: neither options.json", plot_training.main, [str(output.parent)])
