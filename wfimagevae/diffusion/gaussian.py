"""Gaussian diffusion in discrete time: how noise is added to data, and what a network learns.

Timestep 0 is nearest to data and the last one, 999 of 1000, is noise; in our flows' time data are
at 1. A state is ``x_t = sqrt(alpha_bar_t) data + sqrt(1 - alpha_bar_t) noise``.
"""

import math

import torch
from torch import Tensor

from wfimagevae.diffusion.denoiser import Level, Prediction, recover
from wfimagevae.diffusion.path import expand_times


class GaussianDiffusion:
    """The variances of a schedule, and the training targets and sampling levels they give.

    Args:
        schedule: ``linear``, ``squaredcos_cap_v2`` or ``scaled_linear``; see `noise_schedule`.
        num_steps: Number of timesteps.

    Attributes:
        betas: Variance of the noise that each timestep adds, float64 (num_steps,), on the CPU.
        alpha_bar: Share of the data's variance that is left, likewise.
        posterior_log_variance: Of the state before, given state and data, likewise; at timestep 0,
            where it is minus infinity, that of timestep 1.
    """

    def __init__(self, schedule: str, num_steps: int = 1000):
        self.num_steps = num_steps
        self.betas = noise_schedule(schedule, num_steps)
        self.alpha_bar = (1 - self.betas).cumprod(0)
        self._alpha, self._sigma = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        variance = self.betas[1:] * (1 - self.alpha_bar[:-1]) / (1 - self.alpha_bar[1:])
        self.posterior_log_variance = torch.cat([variance[:1], variance]).log()

    def add_noise(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The states x_t, (B, ...), of data at timesteps ``t``, int64 (B,), best on the CPU."""
        return _at(self._alpha, t, data) * data + _at(self._sigma, t, data) * noise

    def target(self, prediction: Prediction, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a network learns to predict of x_t, (B, ...): the noise, the data or v."""
        if prediction == "v":
            return _at(self._alpha, t, data) * noise - _at(self._sigma, t, data) * data
        return {"epsilon": noise, "data": data}[prediction]

    def recover(
        self, prediction: Prediction, output: Tensor, x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Data and noise, each (B, ...), from what a network predicted of x_t."""
        return recover(prediction, output, x_t, _at(self._alpha, t, x_t), _at(self._sigma, t, x_t))

    def min_snr_weights(self, prediction: Prediction, t: Tensor, gamma: float = 5.0) -> Tensor:
        """Weights of the squared errors at timesteps (B,), float32 (B,), beside ``t``.

        In terms of the data's error the weight is min(SNR, gamma), SNR = alpha_bar / (1 -
        alpha_bar).

        Source: Hang et al. 2023, arXiv:2303.09556, section 3.4.
        """
        snr = self.alpha_bar / (1 - self.alpha_bar)
        of_data_error = {"epsilon": snr, "data": torch.ones_like(snr), "v": snr + 1}[prediction]
        return (snr.clamp_max(gamma) / of_data_error)[t.cpu()].float().to(t.device)

    def variational_bound(
        self,
        output: Tensor,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        prediction: Prediction = "epsilon",
    ) -> Tensor:
        """The term of the variational bound at each sample's timestep, bits per dimension, (B,).

        It is KL(q(x_{t-1} | x_t, data) || p(x_{t-1} | x_t)), and at timestep 0 minus the
        log-likelihood of the data as 8-bit values in [-1, 1]. Gradients reach the variances alone.
        The hybrid loss adds it, times num_steps / 1000, to the mean squared error.

        Args:
            output: What the network made of x_t, (B, 2 C, ...): ``prediction``, then variances.

        Source: Nichol and Dhariwal 2021, arXiv:2102.09672, section 3.1 and equation 15.
        """
        output, data, noise = output.float(), data.float(), noise.float()
        guess, fraction = output.chunk(2, dim=1)
        x_t = self.add_noise(data, noise, t)
        eps = self.recover(prediction, guess.detach(), x_t, t)[1]
        low = _at(self.posterior_log_variance, t, data)
        high = _at(self.betas.log(), t, data)
        log_variance = low + (fraction + 1) / 2 * (high - low)
        # From the true mean of x_{t-1} to the predicted one; what they have of x_t cancels.
        scale = self.betas / ((1 - self.betas) * (1 - self.alpha_bar)).sqrt()
        gap = _at(scale, t, data) * (noise - eps)
        divergence = (gap.square() / log_variance.exp() + (low - log_variance).exp() - 1) / 2
        divergence = divergence + (log_variance - low) / 2
        surprise = -discrete_log_likelihood(data, data + gap, log_variance)
        is_last = expand_times(t == 0, data).to(data.device)
        return torch.where(is_last, surprise, divergence).flatten(1).mean(1) / math.log(2)

    def grid(self, spacing: int | str) -> tuple[Level, ...]:
        """The levels that a sampler visits, from the noisiest timestep to data (t = -1).

        A spacing of N steps gives N + 1 levels; see `space_timesteps`.
        """
        steps = reversed(space_timesteps(self.num_steps, spacing))
        return *(Level(float(t), float(self.alpha_bar[t])) for t in steps), Level(-1.0, 1.0)


def noise_schedule(name: str, num_steps: int) -> Tensor:
    """The betas of a schedule, float64 (num_steps,), at most 0.999.

    Each means the same noise in any number of steps: ``linear`` goes from 1e-4 to 0.02 of 1000
    steps (Ho et al. 2020), the roots of ``scaled_linear`` from those of 0.00085 to 0.012 (Stable
    Diffusion), and ``squaredcos_cap_v2`` has alpha_bar fall as a squared cosine (Nichol and
    Dhariwal 2021, equation 17).
    """
    if num_steps < 2:
        raise ValueError(f"a diffusion needs at least 2 timesteps, got {num_steps}")
    # Ends, and the power of a line between them; 1000 steps.
    lines = {"linear": (1e-4, 0.02, 1), "scaled_linear": (0.00085**0.5, 0.012**0.5, 2)}
    if name in lines:
        low, high, power = lines[name]
        line = torch.linspace(low, high, num_steps, dtype=torch.float64)
        betas = line**power * (1000 / num_steps)
    elif name == "squaredcos_cap_v2":
        ends = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        alpha_bar = ((ends + 0.008) / 1.008 * math.pi / 2).cos().square()
        betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    else:
        names = ", ".join([*lines, "squaredcos_cap_v2"])
        raise ValueError(f"unknown noise schedule {name!r}; use one of {names}")
    return betas.clamp_max(0.999)


def space_timesteps(num_steps: int, spacing: int | str) -> list[int]:
    """Increasing timesteps out of ``num_steps``, as GLIDE's public code spaces them.

    Args:
        spacing: A number of steps, evenly spaced with both ends (a single one is the noisiest);
            numbers for sections of equal length, as in "10,10,3,2,2"; "ddim25", every so many from
            0; or "fast27", GLIDE's own choice for its upsampler.
    """
    text = str(spacing).replace(" ", "")
    is_fast = text == "fast27"
    stride = text.removeprefix("ddim")
    counts = ("10,10,3,2,2" if is_fast else stride).split(",")
    if not all(count.isdecimal() and int(count) > 0 for count in counts):
        raise ValueError(
            f"bad spacing of steps {spacing!r}; use a number, numbers as in 10,10,3,2,2, ddim25 or "
            "fast27"
        )
    if stride != text:
        found = [range(0, num_steps, by) for by in range(1, num_steps + 1)]
        if match := [list(steps) for steps in found if counts == [str(len(steps))]]:
            return match[0]
        raise ValueError(f"no whole stride takes {stride} steps out of {num_steps}")
    if counts == ["1"]:
        return [num_steps - 1]
    steps, start = [], 0
    length, longer = divmod(num_steps, len(counts))
    for i, count in enumerate(map(int, counts)):
        size = length + (i < longer)
        if count > size:
            raise ValueError(f"cannot take {count} steps out of {size} for spacing {spacing!r}")
        gap = (size - 1) / max(count - 1, 1)
        steps += [start + round(gap * k) for k in range(count)]
        start += size
    # The noisiest step is the hardest for the upsampler: it starts two earlier.
    return [*steps[:-1], steps[-1] - 2] if is_fast else steps


def discrete_log_likelihood(data: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-probability of 8-bit data, scaled to [-1, 1], under a Gaussian; (B, ...), in nats.

    A value stands for the interval half way to its neighbours; the outermost reach to infinity.
    """
    deviation, half = (log_variance / 2).exp(), 1 / 255
    upper = torch.special.ndtr((data + half - mean) / deviation).masked_fill(data > 0.999, 1)
    lower = torch.special.ndtr((data - half - mean) / deviation).masked_fill(data < -0.999, 0)
    return (upper - lower).clamp_min(1e-12).log()


def _at(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """A table's values at timesteps, (B,), to go with ``x``, (B, ...): (B, 1, ..., 1)."""
    if t.shape != (len(x),):
        raise ValueError(f"t must have shape ({len(x)},), got {tuple(t.shape)}")
    # Conversion comes before the move: not every device has float64.
    return expand_times(table[t.cpu()].to(x.dtype), x).to(x.device, non_blocking=x.is_cuda)
