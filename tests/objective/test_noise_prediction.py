"""The objective of discrete diffusion: exact noise has no loss, spikes are judged by time."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.model.glide.models import condition_for, small_glide
from wfimagevae.diffusion.gaussian import GaussianDiffusion
from wfimagevae.objective.noise_prediction import NoisePrediction
from wfimagevae.task.glide_options import GlideOptions

SHAPE = (1, 4, 4)


class OneImage(nn.Module):
    """The exact noise where all data are one image, and variances that are learned or not."""

    def __init__(self, value=0.3, error=0.0, learns_variance=True):
        super().__init__()
        self.config = SimpleNamespace(schedule="linear", num_train_steps=1000)
        self.value, self.learns_variance = value, learns_variance
        self.error = nn.Parameter(torch.tensor(error))
        self.fraction = nn.Parameter(torch.tensor(0.0))
        self.diffusion = GaussianDiffusion("linear")

    def null_condition(self, count, device):
        """It is told nothing."""

    def forward(self, x, t, condition):
        alpha_bar = self.diffusion.alpha_bar[t.long()].float().view(-1, 1, 1, 1)
        eps = (x - alpha_bar.sqrt() * self.value) / (1 - alpha_bar).sqrt() + self.error
        return torch.cat([eps, self.fraction.expand_as(eps)], 1) if self.learns_variance else eps


def batch_of(count, value=0.3, first=0):
    return {
        "image": torch.full((count, *SHAPE), value),
        "position": list(range(first, first + count)),
    }


def objective_of(network, **options):
    values = {"cfg_dropout_prob": 0.0, "vlb_weight": 0.0} | options
    return NoisePrediction(network, lambda b: b["image"], GlideOptions(**values), 3)


def test_the_exact_noise_has_no_loss_and_an_error_is_squared():
    loss, _ = objective_of(OneImage())(batch_of(64), 0)
    assert loss.item() < 1e-6  # nearest to data what is divided by is small
    loss, logs = objective_of(OneImage(error=0.5))(batch_of(64), 0)
    assert loss.item() == pytest.approx(0.25, rel=1e-3)
    sums = torch.stack([pair for name, pair in logs.items() if name.startswith("train/error_t")])
    assert len(sums) == 4 and sums[:, 1].sum() == 64  # every sample stands in one quarter
    torch.testing.assert_close(sums[:, 0].sum() / 64, torch.tensor(0.25), rtol=1e-3, atol=0)


def test_the_bound_teaches_variances_alone():
    network = OneImage(error=0.1)
    objective = objective_of(network, vlb_weight=1.0)
    objective(batch_of(64), 0)[0].backward()
    plain = OneImage(error=0.1)
    objective_of(plain)(batch_of(64), 0)[0].backward()
    torch.testing.assert_close(network.error.grad, plain.error.grad)
    assert network.fraction.grad.abs() > 0 and not plain.fraction.grad
    # An exact mean is best with the least variance: v falls towards -1.
    exact = OneImage()
    objective_of(exact, vlb_weight=1.0)(batch_of(512), 0)[0].backward()
    assert exact.fraction.grad > 0


def test_min_snr_weighs_errors_of_noise_by_its_paper():
    """min(SNR, gamma) / SNR of each sample's own time, by the schedule's definition."""
    network, seen = OneImage(error=1.0), []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    loss, _ = objective_of(network, min_snr_gamma=5.0)(batch_of(256), 0)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)[seen[0].long()]
    snr = alpha_bar / (1 - alpha_bar)
    assert loss.item() == pytest.approx((snr.clamp_max(5) / snr).mean().item(), rel=1e-3)


def test_spikes_are_left_out_by_their_own_times_and_counted():
    """Usual errors differ a hundredfold between times; what is unusual there is left out."""
    network = OneImage()
    objective = objective_of(network, loss_spike_threshold=5.0)
    easy, hard = torch.full((60,), 0.01), torch.full((60,), 1.0)
    t = torch.cat([torch.full((60,), 900), torch.full((60,), 10)])
    for _ in range(2):
        assert objective._is_usual(torch.cat([easy, hard]), t).all()
    # 0.1 is a spike where 0.01 is usual, and nothing where 1 is; 4 is none there, 6 is.
    errors = torch.tensor([0.1, 0.1, 4.0, 6.0, float("inf"), float("nan")])
    times = torch.tensor([900, 10, 10, 10, 10, 10])
    usual = objective._is_usual(errors, times)
    assert usual.tolist() == [False, True, True, False, False, True]  # nan is the engine's
    assert objective.usual.isfinite().all()
    # If all errors of some times grow for good, they are usual again.
    for _ in range(40):
        usual = objective._is_usual(torch.full((20,), 0.2), torch.full((20,), 900))
    assert usual.all()
    network.eval()  # held-out data are judged whole
    before = objective.usual.clone()
    assert objective._is_usual(torch.full((2,), 1e6), torch.tensor([900, 10])).all()
    torch.testing.assert_close(objective.usual, before)


def test_spikes_weigh_nothing_in_the_loss():
    network = OneImage(error=0.1)
    objective = objective_of(network, loss_spike_threshold=5.0)
    for step in range(40):
        objective(batch_of(64, first=64 * step), step)
    spiked = batch_of(64)
    spiked["image"][7] += 100.0  # this network's error at it is huge at all times but the last
    loss, logs = objective(spiked, 40)
    assert loss.item() == pytest.approx(0.01 * 63 / 64, rel=1e-2)
    assert logs["train/spikes_skipped"].item() == pytest.approx(1 / 64)


def test_texts_are_dropped_and_images_to_enlarge_never():
    network = small_glide("GLIDE-upsample")
    condition = condition_for(network, batch_size=300)
    objective = NoisePrediction(
        network,
        lambda batch: batch["image"],
        GlideOptions(cfg_dropout_prob=0.3, vlb_weight=0.0),
        0,
        lambda batch: condition,
    )
    batch = {"image": torch.zeros(300, 1), "position": list(range(300))}
    _, _, told, whole = objective.draw_sample(batch)
    null = network.null_condition(300, "cpu")
    assert 60 < whole.sum() < 120
    torch.testing.assert_close(told["ids"][whole], null["ids"][whole])
    assert not told["mask"][whole].any()
    torch.testing.assert_close(told["ids"][~whole], condition["ids"][~whole])
    torch.testing.assert_close(told["low_res"], condition["low_res"])
