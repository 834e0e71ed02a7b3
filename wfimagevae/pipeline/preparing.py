"""What a flow step needs of an autoencoder: a copy that normalises its latents, cached latents."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from wfimagevae.dataset import Captions, IndexedImages, Labels
from wfimagevae.dataset.open import only_source
from wfimagevae.dataset.protocol import FlowData
from wfimagevae.engine.distributed import World, barrier
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.export.folder import write_model
from wfimagevae.files import write_json
from wfimagevae.generate.autoencoders import load_autoencoder, load_vae
from wfimagevae.generate.latent_cache import LatentCache
from wfimagevae.generate.latent_stats import measure_latents, write_normalization
from wfimagevae.generate.options import AutoencoderOptions, CacheOptions
from wfimagevae.model.text import open_text_encoder
from wfimagevae.task.flow_space import build_datasets

log = logging.getLogger("wfimagevae")

MEASURED_IMAGES = 4096
_RECORD = "measured.json"


class _Batches:
    """A process's share of a flow's own training images, as `measure_latents` takes them."""

    def __init__(self, images: FlowData, count: int, batch_size: int, here: World):
        self.images, self.size, self.device = images, batch_size, here.device
        self.dataset = range(count)[here.rank :: here.size]

    def __iter__(self) -> Iterator[dict]:
        for start in range(0, len(self.dataset), self.size):
            positions = list(self.dataset[start : start + self.size])
            inputs = self.images.to_inputs(self.images.read_batch(positions), self.device)
            yield {"image": inputs["image"], "path": positions, "unreadable": []}


def prepare_autoencoder(
    folder: Path, name: str, source: str, options: TrainingOptions, here: World
) -> Path:
    """A Hugging Face folder of the VAE whose shift and scale were measured on a flow's data.

    Made once: a folder of the same source and data is taken as it is. Collective.

    Args:
        folder: Of the flow's run.
        name: Registered name of the VAE.
        source: Its weights; of a checkpoint the average, if there is one.
        options: Of the flow's training.
        here: This process and the others.

    Raises:
        ValueError: no image could be encoded, or a latent channel does not vary.
    """
    target = folder / "autoencoder"
    names = ("dataset", "data_path", "resolution", "train_crop", "seed", "num_shapes")
    steps = folder.absolute().parent
    place = Path(source).absolute()
    # An output that was moved, or is spelled otherwise, holds the same weights.
    shown = str(place.relative_to(steps)) if place.is_relative_to(steps) else source
    record = {"source": shown} | {n: getattr(options, n, None) for n in names}
    record = json.loads(json.dumps(record))
    if _has(target, record):
        return target
    vae = load_vae(AutoencoderOptions(model_name=name, from_pretrained=source))
    # At one size: channels' statistics are those of the images, however they are cut.
    plain = {"eval_steps": 0, "aspect_buckets": 0, "reduced_min_sizes": []}
    dataset, _ = build_datasets(options.changed(**plain))
    count = min(len(dataset), MEASURED_IMAGES)
    log.info("measuring shift and scale of the latents of %s on %d images", source, count)
    loader = _Batches(dataset, count, options.batch_size, here)
    mean, std, _ = measure_latents(vae.eval(), loader, here, options.mix_precision)
    if here.is_main:
        partial = folder / ".autoencoder.tmp"
        for old in (partial, target):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        write_model(vae.cpu(), partial)
        write_normalization(partial / "config.json", mean, std)
        write_json(partial / _RECORD, record)
        partial.rename(target)
    barrier()
    return target


def _has(folder: Path, record: dict) -> bool:
    path = folder / _RECORD
    return path.exists() and json.loads(path.read_text(encoding="utf-8")) == record


def cache_latents(
    folder: Path, vae: str, source: list[str], options: TrainingOptions, here: World
) -> None:
    """Encodes the images of a flow step once; goes on where it was stopped. Collective.

    Args:
        folder: Where the cache goes.
        vae: KIND:PATH of the autoencoder, which normalises its latents.
        source: Folder or manifest.
        options: Of the flow's training on the images themselves.
        here: This process and the others.

    Raises:
        ValueError: sources that cannot be cached, or latents that are not finite.
    """
    captions = Captions(options.captions, options.fixed_prompt_prefix or "")
    images = IndexedImages(
        only_source(source, "images"),
        options.resolution,
        Labels(options.labels),
        captions,
        options.index_cache_dir,
    )
    autoencoder = load_autoencoder(vae, here.device)
    encoder, text = options.text_encoder, None
    if encoder and encoder != "bytes":
        text = open_text_encoder(encoder, here.device, options.text_length)
    cached = CacheOptions(
        mixed_precision=options.mix_precision,
        batch_size=options.batch_size,
        num_workers=options.dataset_num_worker,
        normalization="vae",
        latent_dtype="fp32" if options.mix_precision == "fp32" else "fp16",
    )
    LatentCache(autoencoder, vae, images, folder, cached, text).run(here)
