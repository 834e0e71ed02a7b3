"""Several metrics over pairs of images, in one pass, on any number of processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from wfimagevae.engine.distributed import all_reduce_sum, barrier, is_distributed
from wfimagevae.eval.fid import NUM_FEATURES, FrechetDistance
from wfimagevae.eval.lpips import PerceptualDistance
from wfimagevae.eval.psnr import psnr
from wfimagevae.eval.ssim import ssim
from wfimagevae.generate.autoencoder_args import METRICS
from wfimagevae.model.losses.lpips_network import MissingWeights
from wfimagevae.pictures.pixels import to_unit


@dataclass(frozen=True)
class Networks:
    """Which networks the learned metrics use.

    Attributes:
        lpips_net: ``vgg`` or ``alex``.
        lpips_weights: Backbone file of LPIPS; None takes the cached or downloaded one.
        inception_weights: Inception file of rFID; None takes the cached or downloaded one.
    """

    lpips_net: str = "vgg"
    lpips_weights: str | None = None
    inception_weights: str | None = None

    def check_files(self) -> None:
        """Raises ValueError if a file is named that does not exist."""
        for flag in ("lpips_weights", "inception_weights"):
            path = getattr(self, flag)
            if path and not Path(path).is_file():
                raise ValueError(f"--{flag} {path}: no such file")


class Evaluator:
    """Accumulates metrics over batches; every image weighs the same.

    Args:
        metrics: Any of psnr, ssim, lpips and rfid.
        device: Where the metrics are computed.
        networks: Networks of lpips and rfid.

    Attributes:
        unavailable: Metric -> the way to get its weights, for those that are missing.
        notes: Metric -> what its value hides, after `compute`.
        count: Number of images of all processes, after `compute`.

    Raises:
        ValueError: unknown metric.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        device: torch.device,
        networks: Networks = Networks(),
    ):
        unknown = [name for name in metrics if name not in METRICS]
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}; choose from {', '.join(METRICS)}")
        self.device = device
        self.names = [name for name in METRICS if name in metrics]
        self.unavailable: dict[str, str] = {}
        self._per_image: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        self._rfid: FrechetDistance | None = None
        # Rank 0 first: it downloads what is missing, the others find it in the cache.
        is_main = not is_distributed() or dist.get_rank() == 0
        for my_turn in (is_main, not is_main):
            if my_turn:
                self._build(networks)
            barrier()
        self.reset()

    def _build(self, networks: Networks) -> None:
        for name in self.names:
            try:
                if name == "rfid":
                    self._rfid = FrechetDistance(self.device, networks.inception_weights)
                elif name == "lpips":
                    self._per_image[name] = PerceptualDistance(
                        self.device, networks.lpips_net, networks.lpips_weights
                    )
                else:
                    self._per_image[name] = {"psnr": psnr, "ssim": ssim}[name]
            except MissingWeights as error:
                self.unavailable[name] = str(error)

    def reset(self) -> None:
        """Forgets the images seen."""
        self._images = 0
        # Per metric: sum of the finite values, number of the infinite ones.
        self._sums = {name: [0.0, 0] for name in self._per_image}
        if self._rfid:
            self._rfid.reset()
        self.notes: dict[str, str] = {}
        self.count = 0

    @torch.no_grad()
    def update(self, real: Tensor, generated: Tensor) -> None:
        """Adds pairs.

        Args:
            real: Originals in [-1, 1], (B, 3, H, W).
            generated: Reconstructions, the same shape and range.

        Raises:
            ValueError: shapes differ, or values lie outside [-1, 1].
        """
        x, y = to_unit(real.to(self.device)), to_unit(generated.to(self.device))
        for name, measure in self._per_image.items():
            values = measure(x, y).cpu().double()  # (B,)
            infinite = values.isinf()
            self._sums[name][0] += values[~infinite].sum().item()
            self._sums[name][1] += int(infinite.sum())
        if self._rfid:
            self._rfid.update(x, y)
        self._images += len(x)

    def compute(self) -> dict[str, float]:
        """The metrics over the images of all processes; every process must call it.

        Returns:
            Metric -> mean over images (psnr in dB, infinite if any pair is identical; rfid is one
            distance between the two sets). Unavailable metrics are left out.

        Raises:
            ValueError: no image, or fewer than two for rfid.
        """
        rows = [[self._images, 0], *self._sums.values()]
        # No distributed run has float64-less devices: those are single Macs.
        device = self.device if self.device.type == "cuda" else "cpu"
        totals = torch.tensor(rows, dtype=torch.float64, device=device)  # (1 + metrics, 2)
        (count, _), *sums = all_reduce_sum(totals).tolist()
        self.count = int(count)
        if not self.count:
            raise ValueError("no images to evaluate")
        values = {}
        for name, (total, infinite) in zip(self._sums, sums, strict=True):
            values[name] = float("inf") if infinite else total / count
            if infinite:
                self.notes[name] = _identical_note(name, total, int(infinite), self.count)
        if self._rfid:
            values["rfid"] = self._rfid.compute()
            if self.count < NUM_FEATURES:
                self.notes["rfid"] = (
                    f"{self.count} images are fewer than the {NUM_FEATURES} features: compare "
                    "only with figures from the same images"
                )
        return {name: values[name] for name in self.names if name in values}


def _identical_note(name: str, total: float, infinite: int, count: int) -> str:
    note = f"infinite: {infinite} of {count} reconstructions equal their original"
    if infinite == count:
        return note
    return f"{note}; the mean {name} of the others is {total / (count - infinite):.4f}"
