"""A place that takes no file is refused before anything is measured for it."""

import pytest

from scripts import (
    benchmark_vae,
    eval_generation,
    eval_image,
    generate,
    latent_stats,
    plot_training,
)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (eval_image, "--real_image_dir a --generated_image_dir b --output_json"),
        (benchmark_vae, "--real_image_dir a --model WFVAE2Image:b --output"),
        (latent_stats, "--real_image_dir a --from_pretrained b --output_json"),
        (plot_training, "a --output"),
        (eval_generation, "--dataset shapes --from_pretrained b --output_json"),
        (generate, "--from_pretrained b --npz"),
    ],
)
def test_a_folder_is_no_output_file(script, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([*words.split(), str(tmp_path)])
    assert f"{tmp_path} is a folder; name a file" in capsys.readouterr().err
