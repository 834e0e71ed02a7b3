"""The game of two: one shared forward, no gradient across, noise that follows the sample."""

from collections import deque

import pytest
import torch

from tests.model.losses.test_perceptual_loss import small_loss
from tests.model.test_wfvae2_image import tiny_model
from wfimagevae.engine.seeding import sample_noise
from wfimagevae.objective.vae import (
    DiscriminatorObjective,
    GeneratorObjective,
    fresh_reconstruction,
    instance_noise,
    posterior_noise,
)


@pytest.fixture
def game():
    vae, loss = tiny_model(), small_loss()
    queue = deque()
    generator = GeneratorObjective(vae, loss, seed=0, hand_over=queue)
    discriminator = DiscriminatorObjective(loss, lambda batch: queue.popleft())
    return vae, loss, generator, discriminator, queue


def batch(positions=(3, 4)):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(len(positions), 3, 32, 32, generator=generator) * 2 - 1
    return {"image": images, "position": list(positions)}


def test_each_player_owns_its_network_and_no_other(game):
    vae, loss, generator, discriminator, _ = game
    assert {id(p) for p in generator.parameters()} == {id(p) for p in vae.parameters()}
    assert {id(p) for p in discriminator.parameters()} == {id(p) for p in loss.parameters()}


def test_gradients_do_not_cross(game):
    vae, loss, generator, discriminator, _ = game
    generator(batch(), 0)[0].backward()
    assert all(p.grad is None for p in loss.parameters())
    assert any(p.grad is not None for p in vae.parameters())
    before = [None if p.grad is None else p.grad.clone() for p in vae.parameters()]
    discriminator(batch(), 0)[0].backward()
    assert any(p.grad is not None for p in loss.discriminator.parameters())
    for parameter, old in zip(vae.parameters(), before, strict=True):
        assert (parameter.grad is None) == (old is None)
        assert old is None or torch.equal(parameter.grad, old)


def test_the_joint_turn_runs_the_vae_once(game):
    vae, loss, generator, discriminator, queue = game
    calls = []
    vae.encoder.register_forward_hook(lambda *_: calls.append("encode"))
    iterate = loss.discriminator.power_iteration
    loss.discriminator.power_iteration = lambda: (calls.append("iterate"), iterate())
    micro = [batch((0, 1)), batch((2, 3))]
    generator.begin_update()
    for one in micro:
        generator(one, 0)
    discriminator.begin_update()
    for one in micro:
        discriminator(one, 0)
    assert calls == ["encode", "encode", "iterate"]  # its norm, once an update
    assert not queue


def test_what_is_handed_over_is_a_fresh_reconstruction_and_forgotten_if_nobody_takes_it(game):
    vae, _, generator, _, queue = game
    for _ in range(3):  # before the discriminator starts, nobody takes them
        generator.begin_update()
        generator(batch(), 0)
    (handed_over,) = queue
    torch.testing.assert_close(handed_over, fresh_reconstruction(vae, seed=0)(batch()))


def test_noise_follows_the_sample_through_any_batch(game):
    vae, *_ = game
    reconstruct = fresh_reconstruction(vae.double(), seed=0)
    whole = batch((3, 4))
    whole["image"] = whole["image"].double()
    parts = [{"image": whole["image"][i : i + 1], "position": [p]} for i, p in enumerate((3, 4))]
    torch.testing.assert_close(reconstruct(whole), torch.cat([reconstruct(p) for p in parts]))


def test_instance_noise_follows_the_sample_and_differs_between_real_and_fake():
    loss = small_loss(instance_noise_std=0.5, instance_noise_decay=0.9)
    whole = instance_noise(loss, batch(range(8)), 2, 0, "fake")
    assert whole.std().item() == pytest.approx(0.5 * 0.81, rel=0.02)
    parts = [instance_noise(loss, batch((n,)), 2, 0, "fake") for n in range(8)]
    assert torch.equal(whole, torch.cat(parts))
    others = [
        instance_noise(loss, batch(range(8)), 2, 0, "real"),
        instance_noise(loss, batch(range(8)), 2, 1, "fake"),
        sample_noise(0, range(8), (3, 32, 32), torch.device("cpu")),  # the posterior's
    ]
    for other in others:
        correlation = torch.corrcoef(torch.stack([whole.flatten(), other.flatten()]))[0, 1]
        assert correlation.abs() < 0.05
    assert instance_noise(loss, batch(), 10**6, 0, "fake") is None  # nobody would see it
    assert instance_noise(small_loss(), batch(), 0, 0, "fake") is None


def test_both_players_see_the_same_noisy_reconstruction():
    vae, loss = tiny_model(), small_loss(instance_noise_std=0.3)
    queue, seen = deque(), []
    loss.discriminator.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    GeneratorObjective(vae, loss, 5, queue)(batch(), 3)
    DiscriminatorObjective(loss, lambda batch: queue.popleft(), 5)(batch(), 3)
    by_generator, real, fake = seen
    assert torch.equal(by_generator, fake)
    torch.testing.assert_close(real, batch()["image"] + instance_noise(loss, batch(), 3, 5, "real"))


@pytest.mark.parametrize(("steps_a_turn", "due"), [(1, [0, 2, 4, 6]), (2, [1, 5])])
def test_the_gradient_penalty_counts_the_discriminators_own_updates(steps_a_turn, due):
    loss = small_loss(r1_weight=1.0, r1_interval=2)
    objective = DiscriminatorObjective(loss, lambda b: b["image"], 0, steps_a_turn)
    steps = range(0, 8) if steps_a_turn == 1 else range(1, 8, 2)  # its turns
    found = [step for step in steps if "train/r1_penalty" in objective(batch(), step)[1]]
    assert found == due


def generator_gradients(vae, loss):
    vae.zero_grad()
    GeneratorObjective(vae, loss, seed=0)(batch(), 0)[0].backward()
    return {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}


def adversarial_gradients(vae, loss):
    """Of minus the mean logit, without any detour, through the undetached latent."""
    vae.zero_grad()
    sample = vae(batch()["image"], noise=posterior_noise(vae, batch(), 0)).sample
    (-loss.discriminator(sample).mean() / sample[0].numel()).backward()
    return {name: p.grad.clone() for name, p in vae.named_parameters()}


@pytest.mark.parametrize("rec_weight", [0, 1])
def test_encoder_and_decoder_get_the_whole_adversarial_gradient(rec_weight):
    vae = tiny_model().double()
    off = {"kl_weight": 0, "wavelet_weight": 0}
    constant = {"adaptive_weight": False, "disc_weight": 0.7}
    loss = small_loss(**off, **constant, rec_weight=rec_weight).double()
    want = {name: 0.7 * grad for name, grad in adversarial_gradients(vae, loss).items()}
    if rec_weight:
        pixels = generator_gradients(vae, small_loss(**off, disc_weight=0).double())
        want = {name: grad + pixels[name] for name, grad in want.items()}
    got = generator_gradients(vae, loss)
    torch.testing.assert_close(got, want)
    for half in ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_in.weight"):
        assert got[half].abs().max() > 0


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_frozen_half_leaves_the_adversarial_gradient_to_the_other(half):
    vae = tiny_model()
    getattr(vae, half).requires_grad_(False)
    options = {"rec_weight": 0, "adaptive_weight": False, "mmd_weight": 1.0, "kl_free_bits": 0.1}
    grads = generator_gradients(vae, small_loss(**options))
    assert grads and not [name for name in grads if name.startswith(half)]
