"""Paths from noise to data, times, guidance and samplers.

The time convention of the whole repository, but for Gaussian diffusion, stated once:

- ``t = 0`` is noise (the source), ``t = 1`` is data (the target);
- ``x_t = (1 - t) * noise + t * data`` and the velocity is ``v = dx_t / dt = data - noise``;
- a sampler integrates ``dx / dt = v(x, t)`` from 0 to 1;
- the average velocity is anchored at its state: ``x_s = x_t + (s - t) * u(x_t, t, s)``, s >= t.

SiT's public code runs the same way; the MeanFlow paper and diffusers run time backwards, so what
is ported from them changes the sign of the velocity and mirrors every distribution of times.

Gaussian diffusions keep the timesteps that their networks know: t = 0 is the nearest to data, 999
of 1000 is noise (`gaussian.py`).
"""
