"""MeanFlow: a network learns average velocities, so that one step leads from noise to data."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from wfimagevae.diffusion.guidance import Condition, map_tensors
from wfimagevae.diffusion.path import expand_times
from wfimagevae.engine.device import to_device
from wfimagevae.objective.flow_matching import Batch, FlowMatching, Logs, PathPoint, error_by_time
from wfimagevae.objective.options import MeanFlowOptions


class MeanFlow(FlowMatching):
    """Trains a network to predict u(x_t, t, s), the average velocity from t to s.

    In this repository's direction of time (0 noise, 1 data) the average is anchored at the
    *noisier* point x_t, and s >= t. Differentiating ``(s - t) u = integral of v from t to s`` in t
    gives the identity that is trained, du/dt along the path (tangents (v, 1, 0) for (x, t, s))::

        u = v(x_t, t) + (s - t) du/dt

    The target is detached. The derivative comes from one forward-mode pass that keeps no graph,
    over the samples with s != t alone; the prediction is a forward pass of its own.

    Guidance inside the target, so that sampling needs a single evaluation: in its window, for
    samples whose condition was not dropped, the velocity becomes
    ``omega v + (1 - omega - kappa) u(x, t, t | null) + kappa u(x, t, t | y)`` (equation 19 and
    appendix B). The improved form (Geng et al. 2025, arXiv:2512.02012) takes the derivative along
    the network's own velocity u(x, t, t).

    Arguments are those of `FlowMatching`. A network that knows no end time, or guidance without
    conditions, is a ValueError.

    Source: Geng et al. 2025, arXiv:2505.13447, algorithm 1, with time reversed.
    """

    average_velocity = True

    def __init__(
        self,
        network: nn.Module,
        encode: Callable[[Batch], Tensor],
        options: MeanFlowOptions,
        seed: int,
        condition: Callable[[Batch], Condition] | None = None,
    ):
        super().__init__(network, encode, options, seed, condition)
        if not network.has_average_velocity:
            raise ValueError("MeanFlow needs a network with average_velocity=True in its config")
        if options.guides_target and not network.is_conditional:
            raise ValueError("guidance in MeanFlow's target needs a conditional network")
        self._derivative = self._total_derivative
        # Guidance that is in the target already; a forward-mode pass, of some samples, costs two,
        # and the network's own velocity one.
        target_guidance = options.meanflow_omega / (1 - options.meanflow_kappa)
        self.facts |= {"target_guidance": target_guidance}
        self.passes += (3 if options.meanflow_improved else 2) * options.meanflow_ratio
        self.passes += 2 if options.guides_target else 0

    def compile(self, mode: str = "default") -> None:
        """Compiles the network's blocks, and the forward-mode pass as a whole."""
        super().compile(mode)
        self._derivative = torch.compile(self._traceable_derivative, mode=mode, dynamic=False)

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """Adaptively weighted squared error of the average velocity, and its share by time."""
        t, s, rows = self._times(batch["position"])
        point = self.draw(batch, t)
        s = to_device(s.to(point.t.dtype), point.t.device)
        target = velocity = self._guided_velocity(point)
        if rows:
            # The rows are known on the host: choosing them does not wait for the device.
            chosen = to_device(torch.tensor(rows), target.device)
            x_t, t, end = point.x_t[chosen], point.t[chosen], s[chosen]
            condition = map_tensors(lambda leaf: leaf[chosen], point.condition)
            derivative = self._along(x_t, t, end, condition, velocity[chosen])
            change = expand_times(end - t, x_t) * derivative
            target = velocity.index_add(0, chosen, change.to(velocity.dtype))
        predicted = self.network(point.x_t, point.t, point.condition, s).float()
        error = (predicted - target).square().flatten(1)  # (B, dimensions)
        total, per_dim = error.sum(1), error.detach().mean(1)
        options = self.options
        weight = (total.detach() + options.meanflow_const) ** -options.meanflow_power
        loss = (weight * total).mean()
        logs = {"train/loss": loss.detach(), "train/error": per_dim.mean()}
        return loss, logs | error_by_time(per_dim, point.t)

    def _times(self, positions: list[int]) -> tuple[Tensor, Tensor, list[int]]:
        """Times and end times, float64 (B,) on the CPU, and the rows where they differ.

        Which samples these are depends on the data position alone, evenly spread: any number of
        ranks chooses the same ones. In a batch without any the first row, whose times are equal,
        stands in: all ranks call a sharded network equally often.
        """
        first, second = (self.draw_times(name, positions) for name in ("time", "end time"))
        ratio = self.options.meanflow_ratio
        rows = [i for i, k in enumerate(positions) if int((k + 1) * ratio) > int(k * ratio)]
        t, s = first.clone(), first.clone()
        t[rows] = torch.minimum(first, second)[rows]
        s[rows] = torch.maximum(first, second)[rows]
        if not rows and ratio > 0:
            rows = [0]
        return t, s, rows

    @torch.no_grad()
    def _guided_velocity(self, point: PathPoint) -> Tensor:
        """The velocity that the target is made of, (B, ...)."""
        if not self.options.guides_target:
            return point.velocity
        omega, kappa = self.options.meanflow_omega, self.options.meanflow_kappa
        count, device = len(point.t), point.t.device
        null = self.network.null_condition(count, device)
        x, t = (torch.cat([a, a]) for a in (point.x_t, point.t))
        condition = map_tensors(lambda *leaves: torch.cat(leaves), point.condition, null)
        with_condition, without = self.network(x, t, condition, t).float().chunk(2)
        guided = omega * point.velocity + (1 - omega - kappa) * without + kappa * with_condition
        low, high = self.options.meanflow_window
        plain = to_device(point.dropped, device) | (point.t < low) | (point.t > high)
        return torch.where(expand_times(plain, guided), point.velocity, guided)

    @torch.no_grad()
    def _along(self, x_t: Tensor, t: Tensor, s: Tensor, condition, velocity: Tensor) -> Tensor:
        """Derivative du/dt along the path, or along the network's own velocity."""
        if self.options.meanflow_improved:
            velocity = self.network(x_t, t, condition, t).to(velocity.dtype)
        # Only the mathematical form of attention has forward-mode derivatives.
        with sdpa_kernel(SDPBackend.MATH):
            return self._derivative(x_t, t, s, condition, velocity)

    def _total_derivative(self, x_t: Tensor, t: Tensor, s: Tensor, condition, velocity: Tensor):
        # Not by torch.func, into whose tensors FSDP2 cannot gather weights before PyTorch 2.15.
        with forward_ad.dual_level():
            x_t = forward_ad.make_dual(x_t, velocity)
            t = forward_ad.make_dual(t, torch.ones_like(t))
            return forward_ad.unpack_dual(self.network(x_t, t, condition, s)).tangent

    def _traceable_derivative(self, x_t: Tensor, t: Tensor, s: Tensor, condition, velocity: Tensor):
        def average_velocity(x: Tensor, time: Tensor) -> Tensor:
            return self.network(x, time, condition, s)

        return torch.func.jvp(average_velocity, (x_t, t), (velocity, torch.ones_like(t)))[1]
