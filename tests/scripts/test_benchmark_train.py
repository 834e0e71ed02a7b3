"""The benchmark of training steps: what it prints, and what MeanFlow keeps in memory."""

import json
from functools import partial

import pytest
import torch

from scripts.benchmark_train import main
from tests.images import TINY_MODEL, write_images, write_tiny_config
from tests.refusals import refused
from wfimagevae.model import WFVAE2ImageModel
from wfimagevae.task.bench import flow_benchmark
from wfimagevae.task.bench_options import FlowBenchOptions

SHORT = ("--device", "cpu", "--mix_precision", "fp32", "--warmup", "1", "--steps", "2")
TINY = {"hidden_size": 32, "depth": 2, "num_heads": 2}
FIGURES = {"img_per_s", "ms", "ms_data", "ms_forward", "ms_backward", "ms_optimizer"}


@pytest.fixture
def run(capsys):
    """Runs the command; returns what it prints."""

    def run(*flags):
        main([*SHORT, *map(str, flags)])
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def flow(run, tmp_path):
    """The same on a tiny flow."""
    (tmp_path / "flow.json").write_text(json.dumps(TINY))
    model = ("--task", "flow", "--model_config", tmp_path / "flow.json")
    return partial(run, *model, "--batch_size", 4)


@pytest.fixture
def vae(run, tmp_path):
    """The same on a tiny image VAE."""
    model = ("--model_config", write_tiny_config(tmp_path), "--perceptual_weight", 0)
    return partial(run, *model, "--resolution", 32, "--batch_size", 2, "--disc_num_layers", 1)


def test_vae_benchmark_prints_every_figure_and_both_comparisons(vae):
    result = vae("--compare_with_bare_loop", "--compare_schedules")
    assert result.keys() >= FIGURES
    assert result["img_per_s"] == pytest.approx(2 * 1000 / result["ms"])
    assert result["peak_resident"] > 10**7 and result["mfu"] is None
    assert result["loop_overhead"] > 0 and result["alternate_over_joint"] > 0
    facts = {"resolution": 32, "gan_schedule": "joint", "disc_weight": 0.5, "compile": False}
    assert facts.items() <= result.items()


def test_a_profile_and_a_checkpoint_are_measured(vae, tmp_path):
    lpips = ("--random_vgg", "--perceptual_weight", 1, "--ema")
    result = vae(*lpips, "--profile", 4, "--checkpoint", "--ckpt_dir", tmp_path / "runs")
    assert result["perceptual_weight"] == 1
    times = [row["ms"] for row in result["kernels"]]
    assert len(times) == 4 and times == sorted(times, reverse=True)
    # Forward and backward convolutions are most of an autoencoder's step.
    assert any("convolution" in row["kernel"] and row["share"] > 0.1 for row in result["kernels"])
    assert 0 < sum(row["share"] for row in result["kernels"]) <= 1 and result["busy"] > 0
    model = WFVAE2ImageModel.from_config(TINY_MODEL)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert result["checkpoint_bytes"] > 4 * weights  # the average and two moments besides
    assert all(result[f"s_{name}"] > 0 for name in ("pause", "write", "resume"))
    assert list((tmp_path / "runs").iterdir()) == []


def test_kernels_of_attention_are_compared_by_their_arithmetic(vae):
    with torch.compiler.set_stance("force_eager"):
        rows = vae("--mix_precision", "bf16", "--compare_attention", 4, 16)["attention"]
    cases = {(row["kernel"], row["positions"]): row for row in rows}
    assert len(cases) == len(rows) == 16
    measured = [row for row in rows if "why_not" not in row]
    for row in measured:
        # Two products of N x N x 16 an image, and each again twice in backward.
        flops = 3 * 2 * 2 * row["batch"] * row["positions"] ** 2 * 16
        assert row["tflop_per_s"] == pytest.approx(flops / row["ms"] / 1e9)
    # A batch of two images of 32 px has 16 positions in each.
    assert cases["products", 4]["batch"] == 8 and cases["products", 16]["batch"] == 2
    assert {row["kernel"] for row in measured} >= {"ours", "PyTorch's choice", "products"}
    assert cases["CUDNN_ATTENTION", 16]["why_not"]


def test_flow_benchmark_needs_no_data(flow):
    for flags, shape in (
        (["--dataset", "latents", "--model_name", "DiT-S/2"], [4, 32, 32]),
        (["--dataset", "latents", "--latent_shape", "3", "8", "8"], [3, 8, 8]),
        (["--dataset", "cifar10", "--resolution", "16", "--num_classes", "0"], [3, 16, 16]),
        (["--dataset", "shapes", "--resolution", "16", "--objective", "mean_flow"], [3, 16, 16]),
    ):
        result = flow(*flags)
        assert result.keys() >= FIGURES and result["sample_shape"] == shape
        assert result["num_classes"] == (0 if "0" in flags else 1000)
        assert result["img_per_s"] == pytest.approx(4 * 1000 / result["ms"])


def test_both_benchmarks_read_images(flow, tmp_path, vae):
    images = write_images(tmp_path / "photos", 5)
    flags = ("--data_path", images, "--resolution", 32, "--dataset_num_worker", 0)
    result = flow(*flags, "--compare_objectives")
    assert result["sample_shape"] == [3, 32, 32] and result["num_classes"] == 0
    assert result["mean_flow_over_flow_matching"] > 0
    assert 1 <= result["saved_memory_ratio"] <= 1.3  # one whose graph backward keeps takes over 2
    images = write_images(tmp_path / "photos", 3)
    assert vae("--image_path", images, "--dataset_num_worker", 0)["ms_data"] > 0


def test_what_cannot_be_timed_is_refused(flow, vae):
    refused("--resolution .* is too small for the discriminator", vae, "--disc_num_layers", 5)
    for flags, message in (
        (["--compare_objectives", "--batch_size", "3"], "raise --batch_size 3"),
        (["--compare_objectives", "--gradient_checkpointing"], "out --gradient_checkpointing"),
        (["--fsdp"], "--fsdp"),
        (["--list_flags"], "belongs to train_ddp.py"),
    ):
        refused(message, flow, "--resolution", "16", *flags)


def test_flags_and_the_task_come_from_a_file_and_misspelt_ones_are_refused(run, tmp_path, capsys):
    options = {"task": "flow", "dataset": "moons", "model_name": "MLP", "batch_size": 6}
    (tmp_path / "run.yaml").write_text(json.dumps(options))
    flags = ("--num_classes", 2, "--config", tmp_path / "run.yaml")
    all_of_it = ["--compare_with_bare_loop", "--checkpoint", "--ckpt_dir", tmp_path / "runs"]
    for more, size in ((all_of_it, 6), (["--batch_size", 12], 12)):
        result = run(*flags, *more)
        assert result["img_per_s"] == pytest.approx(size * 1000 / result["ms"])
        assert result["sample_shape"] == [2] and result.get("loop_overhead", 1) > 0
        assert result.get("s_resume", 1) > 0
    (tmp_path / "run.yaml").write_text("batch_sise: 6")
    with pytest.raises(SystemExit):
        run("--config", tmp_path / "run.yaml")
    assert "did you mean --batch_size?" in capsys.readouterr().err


def test_share_of_the_peak_follows_from_the_networks_arithmetic():
    model = {"dataset": "moons", "model_name": "MLP", "num_classes": 0}
    options = FlowBenchOptions(**model, device="cpu", mix_precision="fp32", batch_size=8)
    bench = flow_benchmark(options)
    (player,) = bench.task.players
    layers = [m for m in player.objective.network.modules() if isinstance(m, torch.nn.Linear)]
    # Every layer works once a sample: a forward pass, and a backward pass that costs two.
    assert player.flops_per_sample == 3 * 2 * sum(layer.weight.numel() for layer in layers)
    bench.peak = 1e9
    result = bench.time_steps(1, 2)
    expected = player.flops_per_sample * result["img_per_s"] / 1e9
    assert result["mfu"] == pytest.approx(expected)
    assert result["tflop_per_s"] == pytest.approx(expected / 1000)
