"""Two gloo processes against one: same samples, same updates, exact resumption."""

import pytest

from tests.task.training import Workplace, differences, largest_difference, load

SIX_STEPS = {"disc_start": 1, "ema": True, "lr": 1e-4}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("gan_schedule", ["joint", "alternate"])
def test_two_ranks_and_accumulation_equal_one_big_batch(workplace, gan_schedule):
    options = SIX_STEPS | {"adaptive_weight": None, "no_adaptive_weight": True}
    options |= {"gan_schedule": gan_schedule}
    one = load(workplace.train(f"{gan_schedule}-one", 6, batch_size=8, **options), 6)
    two = load(
        workplace.torchrun(f"{gan_schedule}-two", 6, batch_size=2, grad_accum_steps=2, **options),
        6,
    )
    # Micro-batches of two ranks interleave: each update still averages the same 8 samples.
    assert one["sampler_state"] == two["sampler_state"]
    for part in ("gen_model", "disc_model"):
        assert largest_difference(one["state_dict"][part], two["state_dict"][part]) < 2e-5
    assert largest_difference(one["ema_state_dict"], two["ema_state_dict"]) < 2e-5


def test_the_adaptive_weight_agrees_over_ranks(workplace):
    one = load(workplace.train("adaptive-one", 4, batch_size=4, **SIX_STEPS), 4)
    two = load(workplace.torchrun("adaptive-two", 4, batch_size=2, **SIX_STEPS), 4)
    difference = largest_difference(one["state_dict"]["gen_model"], two["state_dict"]["gen_model"])
    assert difference < 2e-5


def test_two_ranks_resume_to_the_bit(workplace):
    options = SIX_STEPS | {"grad_accum_steps": 2, "dataset_num_worker": 1}
    whole = load(workplace.torchrun("resume-whole", 6, **options), 6)
    folder = workplace.torchrun("resume-cut", 6, save_ckpt_step=3, **options)
    (folder / "checkpoint-6.ckpt").unlink()
    workplace.torchrun("resume-cut", 6, resume_from_checkpoint="auto", **options)
    found = differences(whole, load(folder, 6))
    assert not [path for path in found if not path.startswith(("/best_score", "/task_state"))]
    assert len(whole["rng_state"]) == 2


def test_another_number_of_ranks_reads_the_same_samples_on(workplace):
    folder = workplace.torchrun("shrink", 3, batch_size=2, save_ckpt_step=3, **SIX_STEPS)
    assert load(folder, 3)["sampler_state"]["position"] == 12
    workplace.train("shrink", 5, batch_size=4, resume_from_checkpoint="auto", **SIX_STEPS)
    shrunk = load(folder, 5)
    whole = load(workplace.train("steady", 5, batch_size=4, **SIX_STEPS), 5)
    assert shrunk["sampler_state"] == whole["sampler_state"]
    assert (
        largest_difference(shrunk["state_dict"]["gen_model"], whole["state_dict"]["gen_model"])
        < 2e-5
    )
