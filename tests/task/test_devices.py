"""Training compiled, and on a GPU where there is one."""

import csv

import pytest

from tests.task.training import Workplace, largest_difference, load


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("devices"))


def rec_losses(folder):
    with (folder / "training_losses.csv").open(newline="") as file:
        return [float(row["train/rec_loss_per_pixel"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_compiled_training_follows_eager_training(workplace):
    options = {"lr": 1e-5, "log_steps": 1, "csv_log_steps": 1}
    eager = workplace.train("eager", 4, **options)
    compiled = workplace.train("compiled", 4, compile=True, **options)
    assert rec_losses(compiled) == pytest.approx(rec_losses(eager), rel=1e-4)
    state = load(compiled, 4)["state_dict"]
    assert state.keys() == load(eager, 4)["state_dict"].keys()
    assert largest_difference(state["gen_model"], load(eager, 4)["state_dict"]["gen_model"]) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("mix_precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("compile", [None, True])
def test_training_on_a_gpu_learns_and_resumes(workplace, mix_precision, compile):
    options = {
        "device": "cuda",
        "mix_precision": mix_precision,
        "compile": compile,
        "dataset_num_worker": 2,
        "log_steps": 1,
        "csv_log_steps": 1,
    }
    name = f"gpu-{mix_precision}-{compile}"
    workplace.train(name, 30, save_ckpt_step=15, **options)
    folder = workplace.run_folder(name)
    (folder / "checkpoint-30.ckpt").unlink()
    workplace.train(name, 30, resume_from_checkpoint="auto", **options)
    losses = rec_losses(folder)
    assert len(losses) == 30
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.gpu
def test_gpu_and_cpu_agree(workplace):
    options = {"lr": 1e-6, "log_steps": 1, "csv_log_steps": 1, "disc_start": 0}
    cpu = rec_losses(workplace.train("on-cpu", 3, **options))
    gpu = rec_losses(workplace.train("on-gpu", 3, device="cuda", **options))
    assert gpu == pytest.approx(cpu, rel=2e-2)  # TF32, and noise of another generator
