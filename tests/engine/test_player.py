"""The one place that zeroes, accumulates, clips and steps."""

import copy

import pytest
import torch

from tests.engine.toy import Regression, batches, player, weights
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.player import Player, PlayerPart


@pytest.mark.parametrize("fused", [True, False])
def test_updates_are_those_of_plain_pytorch(fused):
    ours = player(fused=fused, clip_grad_norm=0.05)
    plain = copy.deepcopy(ours.objective)
    optimizer = torch.optim.AdamW(plain.parameters(), 0.05, weight_decay=1e-4)
    for i, batch in enumerate(batches(6, 4)):
        logs = ours.update([batch], i)
        optimizer.param_groups[0]["lr"] = ours.named_lrs()["lr/toy"]
        optimizer.zero_grad()
        loss, _ = plain(batch, i)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        optimizer.step()
        torch.testing.assert_close(logs["grad_norm/toy"], norm, rtol=1e-5, atol=0)
        torch.testing.assert_close(logs["train/loss"].double(), loss.detach(), rtol=1e-6, atol=0)
    want = torch.cat([p.detach().flatten() for p in plain.parameters()])
    torch.testing.assert_close(weights(ours), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("fused", "clip"), [(True, 1e9), (False, 0.1)])
def test_accumulating_halves_equals_one_big_batch(fused, clip):
    whole, parts = (player(fused=fused, clip_grad_norm=clip) for _ in range(2))
    for i, batch in enumerate(batches(5, 8)):
        whole.update([batch], i)
        parts.update([{k: v[n::2] for k, v in batch.items()} for n in (0, 1)], i)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=1e-12)
    assert parts.objective.updates == 5  # once an update, not once a micro-batch


def test_gradients_left_by_another_player_do_not_leak_in():
    clean, dirty = player(), player()
    for parameter in dirty.parameters:
        parameter.grad = torch.full_like(parameter, 1e3)
    batch = batches(1, 4)
    clean.update(batch, 0)
    dirty.update(batch, 0)
    assert torch.equal(weights(clean), weights(dirty))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_non_finite_update_is_skipped_and_counted(precision, fused):
    objective = Regression(torch.float32)
    ours = player(objective, fused=fused, mix_precision=precision)
    good, bad = batches(2, 4, torch.float32)
    ours.update([good], 0)
    before = weights(ours)
    moments = copy.deepcopy(ours.optimizer.state_dict()["state"])
    bad["y"][0] = float("inf")
    ours.update([bad], 1)
    assert torch.equal(weights(ours), before)
    after = ours.optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][k], moments[i][k]) for i in moments for k in moments[i])
    ours.update([good], 2)
    assert not torch.equal(weights(ours), before)
    assert ours.skipped.tolist()[0] >= 1
    assert ours.skipped.tolist()[1] == 0


class InfiniteLoss(Regression):
    """A loss without a finite value whose gradient is finite all the same."""

    def forward(self, batch, step):
        loss, logs = super().forward(batch, step)
        return loss + float("inf"), logs


def test_a_non_finite_loss_with_finite_gradients_is_skipped_too():
    ours = player(InfiniteLoss())
    before = weights(ours)
    for i, batch in enumerate(batches(3, 4)):
        ours.update([batch], i)
    assert torch.equal(weights(ours), before)
    assert ours.skipped.tolist() == [3, 3]


def test_parts_of_a_player_have_optimizers_and_schedules_of_their_own():
    objective = Regression()
    own = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "lr_schedule": "constant"}
    rest = {"lr": 0.01, "weight_decay": 0.0, "lr_schedule": "linear", "mix_precision": "fp32"}
    options = TrainingOptions(**rest | own)
    part = PlayerPart("first", list(objective.network[0].parameters()), options)
    ours = Player("toy", objective, TrainingOptions(**rest), parts=[part])
    ours.plan_rest(4)
    plain = copy.deepcopy(objective)
    sgd = torch.optim.SGD(plain.network[0].parameters(), 0.1)
    adamw = torch.optim.AdamW(plain.network[2].parameters(), 0.01, weight_decay=0.0)
    for i, batch in enumerate(batches(4, 4)):
        ours.update([batch], i)
        adamw.param_groups[0]["lr"] = 0.01 * (1 - i / 4)
        plain.zero_grad()
        plain(batch, i)[0].backward()
        sgd.step()
        adamw.step()
    for own, other in zip(objective.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other)
