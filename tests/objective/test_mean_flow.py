import pytest
import torch

from tests.model.flow.models import small_model
from tests.objective.fields import ConstantClasses, GaussianField, plain
from tests.objective.test_flow_matching import COUNT, MEAN, STD, gaussian_batch, point
from wfimagevae.objective.mean_flow import MeanFlow
from wfimagevae.objective.options import MeanFlowOptions


def build(network, **options):
    times = {"time_distribution": "logit_normal", "time_mean": 0.4}
    return MeanFlow(network, point, plain(**times | options), seed=0)


@pytest.mark.parametrize("ratio", [0.25, 1.0])
@pytest.mark.parametrize("improved", [False, True])
def test_exact_average_velocity_is_where_the_loss_is_lowest(ratio, improved):
    field = GaussianField(MEAN, STD)
    objective = build(field, meanflow_ratio=ratio, meanflow_improved=improved, meanflow_power=0.0)
    objective(gaussian_batch(), 0)[0].backward()
    assert abs(field.offset.grad) < 20 / COUNT**0.5
    assert abs(field.slope.grad) < 20 / COUNT**0.5


class Backwards(GaussianField):
    """The velocities of the same flow from data to noise: x is taken for the later point."""

    def average(self, x, t, s):
        return super().average(x, s, t)


@pytest.mark.parametrize("field", [GaussianField(MEAN, 2 * STD), Backwards(MEAN, STD)])
def test_average_velocity_of_another_flow_is_not(field):
    build(field, meanflow_ratio=1.0, meanflow_power=0.0)(gaussian_batch(), 0)[0].backward()
    assert abs(field.slope.grad) > 60 / COUNT**0.5


def test_ratio_of_samples_have_another_end_time_whatever_the_ranks():
    objective = build(GaussianField(0.0, 1.0), meanflow_ratio=0.25)
    t, s, rows = objective._times(list(range(64)))
    assert len(rows) == 16
    assert torch.equal((s > t).nonzero().flatten(), torch.tensor(rows))
    assert torch.equal((s < t).nonzero(), torch.empty(0, 1, dtype=torch.long))
    second_half = objective._times(list(range(32, 64)))
    assert torch.equal(second_half[0], t[32:]) and torch.equal(second_half[1], s[32:])
    assert [len(objective._times(list(range(k, k + 8)))[2]) for k in (0, 8, 16)] == [2, 2, 2]


def test_adaptive_weight_makes_the_gradient_independent_of_the_errors_size():
    gradients = []
    for size in (1e2, 1e4):
        network = ConstantClasses([size, 0.0])
        objective = build(network, meanflow_ratio=0.0, meanflow_power=1.0)
        batch = gaussian_batch(64) | {"label": torch.zeros(64, dtype=torch.long)}
        objective(batch, 0)[0].backward()
        gradients.append(network.values.grad[0].item() * size)
    assert gradients[0] == pytest.approx(gradients[1], rel=0.05)
    assert gradients[0] == pytest.approx(2.0, rel=0.05)  # d/da log(a^2) times a


def test_guidance_inside_the_target_mixes_three_velocities():
    conditional, null = 2.0, -1.0
    guidance = {"meanflow_omega": 1.5, "meanflow_kappa": 0.25}
    network = ConstantClasses([conditional, null])
    objective = build(network, meanflow_ratio=0.0, meanflow_power=0.0, **guidance)
    batch = gaussian_batch(512) | {"label": torch.zeros(512, dtype=torch.long)}
    objective(batch, 0)[0].backward()
    t = objective.draw_times("time", batch["position"])
    velocity = objective.draw(batch, t).velocity
    target = 1.5 * velocity + (1 - 1.5 - 0.25) * null + 0.25 * conditional
    # The loss is the mean over samples of sum over 2 dimensions of (value - target)^2.
    expected = 2 * 2 * (conditional - target.mean())
    torch.testing.assert_close(network.values.grad[0], expected.detach())


def test_guidance_leaves_dropped_labels_and_times_outside_its_window_alone():
    options = {"meanflow_omega": 3.0, "meanflow_window": (0.5, 1.0), "cfg_dropout_prob": 0.5}
    objective = build(ConstantClasses([2.0, -1.0]), meanflow_ratio=0.0, **options)
    batch = gaussian_batch(256) | {"label": torch.zeros(256, dtype=torch.long)}
    drawn = objective.draw(batch, objective.draw_times("time", batch["position"]))
    guided = objective._guided_velocity(drawn)
    plain = drawn.dropped | (drawn.t < 0.5)
    assert 0 < plain.sum() < 256
    torch.testing.assert_close(guided[plain], drawn.velocity[plain])
    assert not torch.isclose(guided[~plain], drawn.velocity[~plain]).any()


def test_target_is_detached_and_the_derivative_keeps_no_graph():
    field = GaussianField(MEAN, STD)
    objective = build(field, meanflow_ratio=1.0)
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    t = torch.rand(4, dtype=torch.float64)
    derivative = objective._along(x, t / 2, t / 2 + 0.5, None, torch.ones_like(x))
    assert not derivative.requires_grad


def test_networks_without_end_time_and_impossible_guidance_are_refused():
    network = GaussianField(0.0, 1.0)
    with pytest.raises(ValueError, match="needs a conditional network"):
        build(network, meanflow_omega=2.0)
    network.has_average_velocity = False
    with pytest.raises(ValueError, match="average_velocity=True"):
        build(network)
    for values in ({"meanflow_kappa": 1.0}, {"meanflow_window": (0.5, 0.2)}):
        with pytest.raises(ValueError, match=next(iter(values))):
            MeanFlowOptions(**values)


def test_every_batch_calls_the_network_equally_often():
    """A sharded network waits for all ranks, whatever rows their batches happen to hold."""
    calls = []
    objective = build(GaussianField(MEAN, STD), meanflow_ratio=0.25)
    objective.network.register_forward_pre_hook(lambda *_: calls.append(1))
    without, with_end_times = (
        gaussian_batch(4) | {"position": positions} for positions in ([0, 2, 4, 8], [3, 7, 11, 15])
    )
    loss = objective(without, 0)[0]
    assert len(calls) == 2
    objective(with_end_times, 0)
    assert len(calls) == 4
    # The row that stands in changes nothing: this is flow matching at s = t.
    torch.testing.assert_close(
        loss, build(GaussianField(MEAN, STD), meanflow_ratio=0.0)(without, 0)[0]
    )


@pytest.mark.slow
def test_compiling_changes_nothing():
    """Fused norms would stop Dynamo under forward-mode derivatives."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = small_model("FlowDiT-S/2", average_velocity=True, in_channels=3)
        objective = MeanFlow(network, lambda batch: batch["image"], plain(meanflow_ratio=0.5), 0)
        if compiled:
            objective.compile()
        image = torch.linspace(-1, 1, 4 * 3 * 64).view(4, 3, 8, 8)
        loss, _ = objective({"image": image, "position": [0, 1, 2, 3]}, 0)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in network.parameters()])
        results.append((loss.detach(), gradients))
    (loss, gradients), (compiled_loss, compiled_gradients) = results
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-4, atol=1e-5)
    assert (compiled_gradients - gradients).norm() < 1e-3 * gradients.norm()
