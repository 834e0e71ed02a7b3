"""Training compiled, and on a GPU where there is one."""

import pytest
import torch

from tests.task.training import largest_difference, load, rec_losses, rows

LOGGED = {"log_steps": 1, "csv_log_steps": 1}
GPU = LOGGED | {"device": "cuda"}


def losses(folder):
    return [float(row["train/loss"]) for row in rows(folder / "training_losses.csv")]


@pytest.mark.slow
def test_compiled_training_follows_eager_training(workplace):
    options = LOGGED | {"lr": 1e-5}
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
    options = {"mix_precision": mix_precision, "compile": compile, "dataset_num_worker": 2}
    options |= GPU
    name = f"gpu-{mix_precision}-{compile}"
    workplace.cut(name, 30, at=15, **options)
    losses = rec_losses(workplace.go_on(name, 30, **options))
    assert len(losses) == 30
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.gpu
def test_gpu_and_cpu_agree(workplace):
    options = LOGGED | {"lr": 1e-6, "disc_start": 0}
    cpu = rec_losses(workplace.train("on-cpu", 3, **options))
    gpu = rec_losses(workplace.train("on-gpu", 3, device="cuda", **options))
    assert gpu == pytest.approx(cpu, rel=2e-2)  # TF32, and noise of another generator


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_compile_modes_follow_eager_training_on_a_gpu(workplace, place, mode):
    options = GPU | {"lr": 1e-5, "grad_accum_steps": 1, "no_compile": True}
    options |= {"grad_accum_steps": 2} if "no-cudagraphs" in mode else {}
    compiled = options | {"no_compile": None, "compile": True, "compile_mode": mode}
    for trainings, values in ((workplace, rec_losses), (place, losses)):
        eager = values(trainings.train(f"{mode}-eager", 4, **options))
        follows = values(trainings.train(f"{mode}-compiled", 4, **compiled))
        assert follows == pytest.approx(eager, rel=1e-2)  # TF32


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("objective", "mix_precision", "compile"),
    [
        ("flow_matching", "bf16", True),
        ("flow_matching", "fp16", None),
        ("mean_flow", "bf16", True),
        ("mean_flow", "fp16", None),
        ("mean_flow", "fp32", None),
    ],
)
def test_flows_on_a_gpu_learn_and_resume(place, objective, mix_precision, compile):
    options = GPU | {"mix_precision": mix_precision, "compile": compile, "objective": objective}
    options |= {
        "batch_size": 16,
        "dataset_num_worker": 2,
        "eval_steps": 30,
        "no_class_conditional": True,
    }
    whole = losses(place.train("whole", 30, **options))
    place.cut("cut", 30, at=15, **options)
    resumed = losses(place.go_on("cut", 30, **options))
    assert resumed == pytest.approx(whole, rel=0.05)  # its kernels add in any order
    assert sum(whole[-5:]) < sum(whole[:5])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("fsdp", [None, True])
def test_two_gpus_train_as_one_and_resume(place, fsdp):
    options = GPU | {"optimizer": "sgd", "lr": 0.1, "clip_grad_norm": 1e3}
    one = load(place.train("one", 4, batch_size=8, **options), 4)
    options |= {"fsdp": fsdp, "batch_size": 4}
    folder = place.torchrun("two", 4, save_ckpt_step=2, **options)
    (folder / "checkpoint-4.ckpt").unlink()
    place.torchrun("two", 4, resume_from_checkpoint="auto", **options)
    weights = [content["state_dict"]["gen_model"] for content in (one, load(folder, 4))]
    assert largest_difference(*weights) < 1e-3  # TF32
