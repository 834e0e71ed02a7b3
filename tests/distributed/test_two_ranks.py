"""Two gloo processes against one: same samples, same updates, exact resumption."""

import pytest
import torch

from tests.dataset.reading import read_by
from tests.distributed.worker import on_ranks
from tests.images import TINY_MODEL
from tests.task.training import Workplace, differences, largest_difference, load, rec_losses
from wfimagevae.command_line import parse
from wfimagevae.dataset import TrainLoader
from wfimagevae.dataset.open import build_image_data
from wfimagevae.engine.distributed import world
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel
from wfimagevae.task.vae import VaeTask, build_loss, build_players
from wfimagevae.task.vae_options import VaeOptions

CONSTANT = {"no_adaptive_weight": True}
EVERY_TERM = {f"{name}_weight": 1 for name in ("mse", "color", "histogram", "contrast", "r1")}
EVERY_TERM |= {"kl_weight": 1e-3, "kl_warmup_steps": 4, "kl_free_bits": 0.01, "r1_interval": 2}
EVERY_TERM |= {"instance_noise_std": 0.1, "instance_noise_decay": 0.9}
CASES = {  # options, batch of one process, (batch, micro-batches) of two
    "joint": ({"gan_schedule": "joint"} | CONSTANT, 8, (2, 2)),
    "alternate": ({"gan_schedule": "alternate"} | CONSTANT, 8, (2, 2)),
    "adaptive weight": ({"gan_schedule": "joint"}, 4, (2, 1)),
    # MMD compares the latents of one micro-batch, of all ranks: no accumulation here.
    "every term": (EVERY_TERM | {"mmd_weight": 0.1}, 4, (2, 1)),
    "every term but MMD": (EVERY_TERM | {"gan_schedule": "alternate"} | CONSTANT, 8, (2, 2)),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("ranks"))


def play(flags, steps, result):
    """Trains both players in float64 for some steps and saves their networks."""
    torch.set_num_threads(1)
    options = parse(VaeOptions, flags)
    with world("cpu") as here:
        seed_everything(options.seed)
        config = {key: value for key, value in TINY_MODEL.items() if key != "_class_name"}
        vae = WFVAE2ImageModel(**config).double().train()
        loss = build_loss(options, here.device).double()
        players, _ = build_players(options, vae, loss)
        dataset = build_image_data(options, options.image_path)
        loader = TrainLoader(dataset, options.batch_size, read_by(0), "cpu", here.rank, here.size)
        task = VaeTask(options, players, vae, loss, loader)
        for step in range(steps):
            micro = [next(loader) for _ in range(options.grad_accum_steps)]
            for batch in micro:
                batch["image"] = batch["image"].double()
            for player in task.turn(step):
                player.update(micro, step)
        states = {"vae": vae.state_dict(), "loss": loss.state_dict()}
        torch.save(states, result.with_suffix(f".{here.rank}"))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_the_same_samples(workplace, tmp_path, case):
    options, whole, (share, accum) = CASES[case]
    options = options | {"disc_start": 1}
    flags = workplace.flags("x", 6, batch_size=whole, **options)
    play(flags, 6, tmp_path / "one")
    one = torch.load(tmp_path / "one.0", weights_only=True)
    flags = workplace.flags("x", 6, batch_size=share, grad_accum_steps=accum, **options)
    on_ranks(2, play, flags, 6, tmp_path / "two")
    first, second = (torch.load(tmp_path / f"two.{n}", weights_only=True) for n in (0, 1))
    assert not differences(first, second)
    for network in ("vae", "loss"):
        # Key biases of attention have no gradient but rounding, which Adam blows up.
        for state in (one[network], first[network]):
            for name in [n for n in state if n.endswith("1.k.bias")]:
                del state[name]
        assert largest_difference(one[network], first[network]) < 1e-8


def test_two_ranks_resume_to_the_bit(workplace):
    options = {"grad_accum_steps": 2, "dataset_num_worker": 1, "ema": True, "disc_start": 1}
    whole = load(workplace.torchrun("resume-whole", 6, **options), 6)
    folder = workplace.torchrun("resume-cut", 6, save_ckpt_step=3, **options)
    (folder / "checkpoint-6.ckpt").unlink()
    workplace.torchrun("resume-cut", 6, resume_from_checkpoint="auto", **options)
    assert not differences(whole, load(folder, 6))
    assert len(whole["rng_state"]) == 2


def test_another_number_of_ranks_reads_the_same_samples_on(workplace):
    options = {"lr": 1e-5, "log_steps": 1, "csv_log_steps": 1, "disc_start": 1}
    folder = workplace.torchrun("shrink", 3, batch_size=2, **options)
    assert load(folder, 3)["sampler_state"]["position"] == 12
    workplace.go_on("shrink", 6, batch_size=4, **options)
    steady = workplace.train("steady", 6, batch_size=4, **options)
    assert load(folder, 6)["sampler_state"] == load(steady, 6)["sampler_state"]
    assert rec_losses(folder) == pytest.approx(rec_losses(steady), rel=1e-3)
