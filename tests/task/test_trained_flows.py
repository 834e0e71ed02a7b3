"""Flows trained until they are good, and judged by the truth: minutes, so marked slow."""

import pytest
import torch

from tests.diffusion.gaussian_flow import average_velocity, velocity
from tests.task.flow_training import FlowPlace
from wfimagevae.dataset import PointDataset
from wfimagevae.engine.player import Player, UpdateRule
from wfimagevae.engine.schedules import LrSchedule, ScheduleOptions
from wfimagevae.eval.energy_distance import energy_distance
from wfimagevae.eval.generation import SamplingOptions
from wfimagevae.eval.generator_files import load_generator
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.objective.flow_matching import FlowMatching, FlowRules
from wfimagevae.objective.mean_flow import MeanFlow, MeanFlowRules

CPU = torch.device("cpu")
MEAN, STD = 0.7, 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "steps", "sampler", "num_steps", "most"),
    [("flow_matching", 800, "heun", 25, 0.01), ("mean_flow", 1500, "mean_flow", 1, 0.02)],
)
def test_five_modes_are_learned(tmp_path, objective, steps, sampler, num_steps, most):
    """Raw noise scores 0.32."""
    run = FlowPlace(tmp_path).train(
        "modes",
        steps,
        dataset="five_gaussians",
        model_name="MLP",
        model_config=None,
        no_class_conditional=True,
        objective=objective,
        meanflow_ratio=0.5,
        time_distribution="uniform",
        batch_size=256,
        lr=1e-3,
        lr_schedule="cosine",
        ema_decay=0.99,
        log_steps=500,
        csv_log_steps=500,
    )
    options = SamplingOptions(sampler, num_steps)
    samples = load_generator(str(run), CPU).sample(list(range(4000)), None, options)
    fresh = PointDataset("five_gaussians", seed=99).read_batch(list(range(4000)))["point"]
    assert energy_distance(samples, fresh) <= most
    assert energy_distance(torch.randn(4000, 2), fresh) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flow_matching", "mean_flow"])
def test_a_trained_mlp_is_within_5_percent_of_the_exact_velocity(kind):
    network = ModelRegistry.get_model("MLP")(average_velocity=kind == "mean_flow")

    def encode(batch: dict) -> torch.Tensor:
        generator = torch.Generator().manual_seed(batch["position"][0])
        return MEAN + STD * torch.randn(len(batch["position"]), 2, generator=generator)

    rules = FlowRules(seed=1)
    objective = FlowMatching(network, encode, rules)
    if kind == "mean_flow":
        objective = MeanFlow(network, encode, rules, MeanFlowRules(0.5, weighting_power=0.0))
    steps, size = 1500, 512
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.0, fused=True)
    schedule = LrSchedule(ScheduleOptions("cosine", 50, steps))
    player = Player("flow", objective, optimizer, schedule, UpdateRule(clip_grad_norm=10.0))
    for step in range(steps):
        player.update([{"position": list(range(step * size, (step + 1) * size))}], step)

    t = torch.rand(4000) * 0.9
    s = t + (1 - t) * torch.rand(4000) if kind == "mean_flow" else t
    noise, data = torch.randn(4000, 2), MEAN + STD * torch.randn(4000, 2)
    x = (1 - t)[:, None] * noise + t[:, None] * data
    with torch.no_grad():
        if kind == "mean_flow":
            exact, found = average_velocity(x, t, s, MEAN, STD), network(x, t, None, s)
        else:
            exact, found = velocity(x, t, MEAN, STD), network(x, t)
    assert (found - exact).norm() / exact.norm() < 0.05
