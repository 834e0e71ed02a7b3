"""Validation of an image VAE in training: figures over held-out images, pictures of some."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wfimagevae.dataset import ValidImageDataset, valid_loader
from wfimagevae.dataset.open import open_images
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World, gather_objects
from wfimagevae.engine.ema import EMA
from wfimagevae.engine.report.progress import log_write_errors
from wfimagevae.engine.report.tracker import Tracker
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.options import MetricOptions
from wfimagevae.model.vae.tiling import pad_to_multiple
from wfimagevae.pictures.patch_maps import append_summary, save_patch_scores
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.pictures.writer import save_image
from wfimagevae.task.vae_networks import check_validation_sizes
from wfimagevae.task.vae_options import VaeOptions

log = logging.getLogger("wfimagevae")


class Validator:
    """Reconstructs held-out images with the raw weights and, if there is one, the average.

    Args:
        options: Precision, and how many pictures.
        loader: This process's share of the images.
        evaluator: Metrics.
        world: This process and the others.
        folder: Folder of the run, for pictures.
        tracker: Where pictures go besides.
    """

    def __init__(
        self,
        options: VaeOptions,
        loader: DataLoader,
        evaluator: Evaluator,
        world: World,
        folder: Path,
        tracker: Tracker,
    ):
        self.loader, self.evaluator, self.world = loader, evaluator, world
        self.precision, self.folder, self.tracker = options.mix_precision, folder, tracker
        self.num_images, self.num_patch_scores = options.num_pictures
        self._reported: set[str] = set()

    def __call__(
        self, vae: nn.Module, ema: EMA | None, discriminator: nn.Module | None, step: int
    ) -> dict[str, float]:
        """Figures named ``val/...`` and, of the average, ``val_ema/...``. Collective."""
        values = self._evaluate(vae, "val", None if ema else discriminator, step, draw=ema is None)
        if ema is not None:
            with ema.applied():
                values |= self._evaluate(vae, "val_ema", discriminator, step, draw=True)
        return values

    @torch.no_grad()
    def _evaluate(
        self, vae: nn.Module, prefix: str, discriminator: nn.Module | None, step: int, draw: bool
    ) -> dict[str, float]:
        was_training = vae.training
        vae.eval()
        self.evaluator.reset()
        index, rows, written = self.world.rank, [], {}
        for batch in self.loader:
            self._warn_of_unreadable(batch["unreadable"])
            if batch["image"] is None:
                continue
            images = batch["image"].to(self.world.device, memory_format=torch.channels_last)
            output = self._reconstruct(vae, images)
            self.evaluator.update(images, output)
            for path, real, fake in zip(batch["path"], images, output, strict=True):
                if draw and index < self.num_images:
                    name = f"{index:04d}-{Path(path).stem}.png"
                    with log_write_errors(f"validation picture {name}"):
                        written[f"reconstruction/{name}"] = self._save_pair(name, real, fake, step)
                        if discriminator is not None and index < self.num_patch_scores:
                            rows.append(self._save_scores(name, discriminator, real, fake, step))
                index += self.world.size
        vae.train(was_training)
        values = self.evaluator.compute()
        self._finish_pictures(rows, written, step)
        return {f"{prefix}/{name}": value for name, value in values.items()}

    def _reconstruct(self, vae: nn.Module, images: Tensor) -> Tensor:
        padded, (height, width) = pad_to_multiple(images, vae.spatial_factor)
        with autocast(self.world.device, self.precision):
            output = vae(padded, sample_posterior=False).sample
        return self._finite(output[..., :height, :width].float()).clamp(-1, 1)

    def _save_pair(self, name: str, real: Tensor, fake: Tensor, step: int) -> Path:
        folder = self.folder / "val_images"
        original = folder / "original" / name
        if not original.exists():
            save_image(original, to_uint8(real))
        path = folder / "reconstructed" / f"step-{step:08d}" / name
        save_image(path, to_uint8(fake))
        return path

    def _save_scores(
        self, name: str, discriminator: nn.Module, real: Tensor, fake: Tensor, step: int
    ) -> list:
        path = self.folder / "val_patch_scores" / f"step-{step:08d}" / name
        return [step, name, *save_patch_scores(path, discriminator, real, fake)]

    def _finish_pictures(self, rows: list[list], written: dict[str, Path], step: int) -> None:
        gathered = gather_objects(rows)
        if not self.world.is_main:
            return
        rows = sorted((row for part in gathered for row in part), key=lambda row: row[1])
        if rows:
            with log_write_errors("the summary of patch scores"):
                append_summary(self.folder / "val_patch_scores" / "summary.csv", rows)
        self.tracker.log_images(step, written)

    def _finite(self, output: Tensor) -> Tensor:
        """Grey in place of NaN: bad figures and a warning, but no end of the training."""
        if not output.isfinite().all():
            log.warning("some reconstructions of the validation are not finite")
        return output.nan_to_num(0.0)

    def _warn_of_unreadable(self, unreadable: list[tuple[str, str]]) -> None:
        for path, reason in unreadable:
            if path not in self._reported:
                self._reported.add(path)
                log.warning("validation leaves out %s: %s", path, reason)


def build_held_out(options: VaeOptions, loss: nn.Module) -> ValidImageDataset | None:
    """The images to validate on; None without a path to them.

    Raises:
        ValueError: there are none, none is readable, or they are too small to validate on.
    """
    if not options.eval_image_path:
        if options.eval_steps:
            raise ValueError("give --eval_image_path to validate on, or --eval_steps 0")
        return None
    draws_scores = all(options.num_pictures) and options.trains_discriminator
    check_validation_sizes(options, loss, draws_scores)
    held_out = ValidImageDataset(
        open_images(options, options.eval_image_path),
        options.eval_resolution,
        options.eval_crop_size,
        options.eval_subset_size,
    )
    if not options.eval_steps:
        return held_out
    # Reads images until one is whole, which is the first as a rule.
    for i in range(len(held_out)):
        sample = held_out[i]
        if sample["error"] is None:
            return held_out
    raise ValueError(
        f"--eval_image_path: none of {len(held_out)} images is readable, the last is "
        f"{sample['path']}: {sample['error']}; give others, or validate never (--eval_steps 0)"
    )


def build_validator(
    options: VaeOptions,
    process: World,
    folder: Path,
    held_out: ValidImageDataset,
    tracker: Tracker,
) -> Validator:
    """What evaluates the VAE on held-out images while it trains."""
    workers = min(options.dataset_num_worker, 4)
    batch_size = options.eval_batch_size
    loader = valid_loader(held_out, batch_size, workers, process.rank, process.size)
    metrics = ["psnr", "ssim"] + (["lpips"] if options.perceptual_weight > 0 else [])
    networks = MetricOptions(lpips_weights=options.lpips_weights)
    evaluator = Evaluator(metrics, process.device, networks)
    return Validator(options, loader, evaluator, process, folder, tracker)
