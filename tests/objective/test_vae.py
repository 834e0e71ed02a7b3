"""The game of two: one shared forward, no gradient across, noise that follows the sample."""

from collections import deque

import pytest
import torch

from tests.images import TINY_MODEL
from wfimagevae.model.losses import LossConfig, LPIPSWithDiscriminator2D
from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel
from wfimagevae.objective.vae import (
    DiscriminatorObjective,
    GeneratorObjective,
    fresh_reconstruction,
)


@pytest.fixture
def game():
    torch.manual_seed(0)
    vae = WFVAE2ImageModel(**{k: v for k, v in TINY_MODEL.items() if k != "_class_name"})
    config = LossConfig(perceptual_weight=0, disc_num_layers=1, disc_start=0)
    loss = LPIPSWithDiscriminator2D(config)
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
    vae, _, generator, discriminator, queue = game
    calls = []
    vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    micro = [batch((0, 1)), batch((2, 3))]
    generator.begin_update()
    for one in micro:
        generator(one, 0)
    discriminator.begin_update()
    for one in micro:
        discriminator(one, 0)
    assert len(calls) == 2
    assert not queue


def test_reconstructions_that_nobody_took_are_forgotten(game):
    *_, generator, _, queue = game
    for _ in range(3):  # before the discriminator starts, nobody takes them
        generator.begin_update()
        generator(batch(), 0)
    assert len(queue) == 1


def test_a_handed_over_reconstruction_equals_a_fresh_one(game):
    vae, _, generator, _, queue = game
    generator(batch(), 0)
    torch.testing.assert_close(queue[0], fresh_reconstruction(vae, seed=0)(batch()))


def test_noise_follows_the_sample_through_any_batch(game):
    vae, *_ = game
    reconstruct = fresh_reconstruction(vae.double(), seed=0)
    whole = batch((3, 4))
    whole["image"] = whole["image"].double()
    parts = [{"image": whole["image"][i : i + 1], "position": [p]} for i, p in enumerate((3, 4))]
    torch.testing.assert_close(reconstruct(whole), torch.cat([reconstruct(p) for p in parts]))


def test_an_update_of_the_discriminator_iterates_its_norm_once(game):
    _, loss, _, discriminator, _ = game
    count = []
    original = loss.discriminator.power_iteration
    loss.discriminator.power_iteration = lambda: (count.append(1), original())
    discriminator.begin_update()
    assert len(count) == 1
