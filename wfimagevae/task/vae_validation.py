"""Validation of an image VAE in training: figures over held-out images, pictures of some."""

import logging
import os
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from wfimagevae.dataset import ValidImageDataset, valid_loader
from wfimagevae.dataset.images.held_out import evenly_spaced
from wfimagevae.dataset.open import open_images
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World, gather_objects
from wfimagevae.engine.interrupt import Pulse
from wfimagevae.engine.report.progress import log_write_errors
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.options import MetricOptions
from wfimagevae.model.vae.tiling import pad_to_multiple
from wfimagevae.pictures.patch_maps import append_summary, save_patch_scores
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.pictures.writer import ImageWriter
from wfimagevae.task.vae_options import VaeOptions

log = logging.getLogger("wfimagevae")


class VaeValidator:
    """Reconstructs held-out images with the weights that an autoencoder has. Collective.

    Args:
        options: Precision, metrics, and how many pictures.
        held_out: The images, of which each process takes its share.
        world: This process and the others.
        folder: Folder of the run, for pictures.
        vae: The autoencoder.
        discriminator: Whose patch scores are drawn, if there is one.
    """

    def __init__(
        self,
        options: VaeOptions,
        held_out: Dataset,
        world: World,
        folder: Path,
        vae: nn.Module,
        discriminator: nn.Module | None,
    ):
        self.vae, self.discriminator = vae, discriminator
        workers, batch_size = min(options.dataset_num_worker, 4), options.eval_batch_size
        place = batch_size, workers, world.rank, world.size, options.data_timeout
        self.read = partial(valid_loader, held_out, *place)
        self.num_batches = -(-len(range(0, len(held_out), world.size)) // batch_size)  # rank 0's
        metrics = ["psnr", "ssim"] + (["lpips"] if options.perceptual_weight > 0 else [])
        networks = MetricOptions(lpips_weights=options.lpips_weights)
        self.evaluator = Evaluator(metrics, world.device, networks)
        self.world, self.precision, self.folder = world, options.mix_precision, folder
        self.num_images, self.num_patch_scores = options.num_pictures
        self._reported: set[str] = set()

    @torch.no_grad()
    def __call__(
        self, prefix: str, step: int, pulse: Pulse, draw: bool
    ) -> tuple[dict[str, float], dict[str, Path]]:
        """Figures named ``PREFIX/...``; pictures, if it may draw."""
        vae = self.vae
        vae.eval()  # the run puts it back
        self.evaluator.reset()
        index, scores, pictures = self.world.rank, [], {}
        writer = ImageWriter(self.folder / "val_images")  # beside what follows
        batches = self.read()
        ready = partial(batches.ready, 1)
        for number in range(self.num_batches):
            pulse(ready, "validation batch", number, self.num_batches)
            batch = next(batches, {"unreadable": (), "image": None})  # a share may be shorter
            for path, reason in batch["unreadable"]:
                if path not in self._reported:
                    self._reported.add(path)
                    log.warning("validation leaves out %s: %s", path, reason)
            if batch["image"] is None:
                continue
            # Reconstruct images of any size, and measure.
            images = batch["image"].to(self.world.device, memory_format=torch.channels_last)
            padded, (height, width) = pad_to_multiple(images, vae.spatial_factor)
            with autocast(self.world.device, self.precision):
                output = vae(padded, sample_posterior=False).sample
            output = output[..., :height, :width].float()
            if not output.isfinite().all():
                # Grey in place of NaN: bad figures and a warning, but no end of the training.
                log.warning("some reconstructions of the validation are not finite")
            output = output.nan_to_num(0.0).clamp(-1, 1)
            self.evaluator.update(images, output)
            # Draw the first images.
            for path, real, fake in zip(batch["path"], images, output, strict=True):
                if draw and index < self.num_images:
                    stem = Path(path).stem
                    short = len(os.fsencode(stem)) < 200  # names have 255 bytes at most
                    name = f"{index:04d}-{stem if short else stem[:50]}.png"
                    original, drawn = f"original/{name}", f"reconstructed/step-{step:08d}/{name}"
                    if not (writer.folder / original).exists():
                        writer.write(original, to_uint8(real))
                    writer.write(drawn, to_uint8(fake))
                    pictures[f"reconstruction/{name}"] = writer.folder / drawn
                    with log_write_errors(f"patch scores of {name}"):
                        if self.discriminator is not None and index < self.num_patch_scores:
                            place = self.folder / "val_patch_scores" / f"step-{step:08d}" / name
                            row = save_patch_scores(place, self.discriminator, real, fake)
                            scores.append([step, name, *row])
                index += self.world.size
        pulse()
        values = self.evaluator.compute()
        with log_write_errors("validation pictures"), writer:
            pass  # waits for them
        pictures = {name: path for name, path in pictures.items() if path.exists()}
        scores = [row for part in gather_objects(scores) for row in part]
        if scores and self.world.is_main:
            scores.sort(key=lambda row: row[1])
            with log_write_errors("the summary of patch scores"):
                append_summary(self.folder / "val_patch_scores" / "summary.csv", scores)
        return {f"{prefix}/{name}": value for name, value in values.items()}, pictures


def open_held_out(options: VaeOptions) -> Dataset | None:
    """The images to validate on; None where nothing is validated.

    Raises:
        ValueError: there are none, or none is readable.
    """
    if not options.eval_image_path:
        if options.eval_steps:
            raise ValueError("give --eval_image_path to validate on, or --eval_steps 0")
        return None
    sources = open_images(options, options.eval_image_path)
    if not options.eval_steps:
        return None
    sizes = options.eval_resolution, options.eval_crop_size
    images = ConcatDataset([ValidImageDataset(source, *sizes) for source in sources])
    held_out = Subset(images, evenly_spaced(len(images), options.eval_subset_size))
    # Reads images until one is whole, which is the first as a rule.
    for i in range(len(held_out)):
        sample = held_out[i]
        if sample["error"] is None:
            return held_out
    raise ValueError(
        f"--eval_image_path: none of {len(held_out)} images is readable, the last is "
        f"{sample['path']}: {sample['error']}; give others, or validate never (--eval_steps 0)"
    )
