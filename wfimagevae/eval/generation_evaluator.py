"""Comparing two sets of samples by several metrics, on any number of processes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from wfimagevae.engine.distributed import World, barrier, gather_objects, is_distributed
from wfimagevae.eval.energy_distance import energy_distance
from wfimagevae.eval.features import FeatureNetwork, load_features
from wfimagevae.eval.generation_metric_args import SET_METRICS
from wfimagevae.eval.generation_metrics import (
    SetMetricOptions,
    describe_options,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from wfimagevae.eval.sample_sets import SampleSet
from wfimagevae.model.losses.lpips_network import MissingWeights

_FEATURE_METRICS = ("fid", "kid", "precision_recall")


@dataclass(frozen=True)
class Collected:
    """What is kept of a set of samples.

    Attributes:
        count: Samples in the set.
        shape: Of one sample.
        features: (count, F) float32; None without a feature metric.
        raw: The samples that the energy distance compares, (n, ...): 8-bit images or points.
    """

    count: int
    shape: tuple[int, ...]
    features: Tensor | None
    raw: Tensor | None


class GenerationEvaluator:
    """Metrics of generated samples against a reference set.

    Args:
        metrics: Any of `SET_METRICS`.
        here: This process and the others.
        network: Features of fid, kid and precision_recall; None is the default Inception.
        options: What defines these.
        energy_samples: The energy distance compares at most so many samples of each set.

    Attributes:
        unavailable: Metric -> the way to get its weights, for those that are missing.

    Raises:
        ValueError: an unknown metric, or a weight file that holds something else.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        here: World,
        network: FeatureNetwork | None = None,
        options: SetMetricOptions | None = None,
        energy_samples: int = 5000,
    ):
        unknown = [name for name in metrics if name not in SET_METRICS]
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}; choose from {', '.join(SET_METRICS)}")
        self.names = [name for name in SET_METRICS if name in metrics]
        self.here = here
        self.network, self.options = network or FeatureNetwork(), options or SetMetricOptions()
        self.energy_samples = energy_samples if "energy_distance" in self.names else 0
        # float64 statistics; a single Mac's GPU has none.
        self.device = torch.device("cpu") if here.device.type == "mps" else here.device
        self.unavailable: dict[str, str] = {}
        self._extract = None
        wanted = [name for name in self.names if name in _FEATURE_METRICS]
        # Rank 0 first: it downloads what is missing, the others find it in the cache.
        is_main = not is_distributed() or dist.get_rank() == 0
        for my_turn in (is_main, not is_main):
            if my_turn and wanted:
                try:
                    self._extract = load_features(self.network, self.device)
                except MissingWeights as error:
                    self.unavailable = dict.fromkeys(wanted, str(error))
            barrier()

    def collect(
        self,
        samples: SampleSet,
        batch_size: int,
        seed: int = 0,
        title: str = "samples",
        reference: Collected | None = None,
    ) -> Collected:
        """Features and raw samples of a set, each process its share; all return the same.

        Args:
            samples: The set.
            batch_size: Samples at a time.
            seed: Of the choice of those that the energy distance compares.
            title: Of the progress bar.
            reference: What they will be compared with: another size is told at once.

        Raises:
            ValueError: too few samples, or of unlike sizes.
        """
        count, here = len(samples), self.here
        if count <= self.options.neighbours:
            raise ValueError(
                f"{title}: {count} samples are too few to compare distributions; use thousands"
            )
        kept = _choose(count, self.energy_samples, seed)
        numbers = list(range(here.rank, count, here.size))
        features, raw, done = [], [], 0
        shapes = {reference.shape} if reference else set()
        with tqdm(total=len(numbers), desc=title, disable=not here.is_main) as bar:
            for batch in samples.batches(numbers, batch_size):
                shapes.add(tuple(batch.shape[1:]))
                if len(shapes) > 1:
                    break  # told below, on every process
                if self._extract:
                    features.append(self._extract(batch).cpu())
                wanted = [i for i, n in enumerate(numbers[done : done + len(batch)]) if kept[n]]
                raw.append(batch[wanted].cpu())
                done += len(batch)
                bar.update(len(batch))
        shapes = set().union(*gather_objects(shapes))
        for shape in shapes if reference else ():
            _check_sizes(reference.shape, shape)
        if len(shapes) > 1:
            sizes = " and ".join(sorted(map(_size, shapes)))
            raise ValueError(
                f"{title} differ in size, {sizes}; give --resolution, or remove what is no sample"
            )
        return Collected(
            count,
            shapes.pop(),
            _pool(features, numbers) if self._extract else None,
            _pool(raw, [n for n in numbers if kept[n]]) if self.energy_samples else None,
        )

    def measure(self, real: Collected, generated: Collected) -> dict[str, float]:
        """The figures; unavailable metrics are left out.

        Returns:
            ``fid``, ``kid`` and ``kid_std``, ``precision`` and ``recall``, ``energy_distance``.

        Raises:
            ValueError: samples of unlike sizes, or features that are not finite.
        """
        _check_sizes(real.shape, generated.shape)
        values = {}
        for name in self.names:
            if name in self.unavailable:
                continue
            if name == "energy_distance":
                values[name] = self._energy(real.raw, generated.raw)
                continue
            a, b = (c.features.to(self.device) for c in (real, generated))
            if name == "fid":
                values["fid"] = frechet_distance(a, b)
            elif name == "kid":
                values["kid"], values["kid_std"] = kernel_distance(a, b, self.options)
            else:
                pair = precision_recall(a, b, self.options.neighbours)
                values["precision"], values["recall"] = pair
        return values

    def _energy(self, real: Tensor, generated: Tensor) -> float:
        # Of images in [-1, 1]: distances of 8-bit values, rescaled, without a copy in floats.
        scale = 1 / 127.5 if real.dtype == torch.uint8 else 1.0
        return scale * energy_distance(real.to(self.device), generated.to(self.device))

    def notes(self, real: Collected, generated: Collected) -> dict[str, str]:
        """What a person should know when reading the figures."""
        if real.features is None or "fid" not in self.names:
            return {}
        width, count = real.features.shape[1], min(real.count, generated.count)
        if count >= width:
            return {}
        return {
            "fid": f"{count} samples are fewer than the {width} features: compare only with "
            "figures of as many samples"
        }

    def describe(self, real: Collected, generated: Collected) -> dict:
        """How the metrics were measured, for a protocol."""
        protocol = {"real_count": real.count, "generated_count": generated.count}
        protocol["size"] = _size(real.shape)
        if real.features is not None:
            protocol["features"] = self.network.describe()
            options = describe_options(self.options, real.count, generated.count)
            protocol |= {name: options[name] for name in self.names if name in options}
        if "energy_distance" in self.names:
            is_image = real.raw.dtype == torch.uint8
            protocol["energy_distance"] = {
                "vectors": "raw pixels in [-1, 1], Euclidean" if is_image else "points, Euclidean",
                "estimator": "unbiased (U-statistic), float64",
                "real_samples": len(real.raw),
                "generated_samples": len(generated.raw),
            }
        return protocol


def _choose(count: int, wanted: int, seed: int) -> Tensor:
    """Which samples are kept, bool (count,): a random choice, since folders are sorted."""
    kept = torch.zeros(count, dtype=torch.bool)
    kept[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]] = True
    return kept


def _pool(parts: list[Tensor], numbers: list[int]) -> Tensor:
    """Rows of all processes in the order of their numbers."""
    mine = torch.cat(parts) if parts else None
    gathered = [part for part in gather_objects((numbers, mine)) if part[1] is not None]
    order = torch.tensor([n for part, _ in gathered for n in part]).argsort()
    return torch.cat([rows for _, rows in gathered])[order]


def _check_sizes(real: tuple[int, ...], generated: tuple[int, ...]) -> None:
    if real != generated:
        raise ValueError(
            f"reference samples are {_size(real)}, generated ones {_size(generated)}: give "
            "--resolution, which resizes the reference"
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}" if len(shape) == 3 else f"{shape[0]}-D"
