"""The data that a flow learns, the space in which it learns it, and what it is told."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from wfimagevae.dataset import Cifar10Dataset, LatentDataset, PointDataset, ShapesDataset
from wfimagevae.dataset.latents.record import read_record
from wfimagevae.dataset.open import (
    Sources,
    better_captions,
    build_image_data,
    only_source,
)
from wfimagevae.dataset.options import DRAWN, POINT_SETS, StreamOptions
from wfimagevae.dataset.protocol import TrainData
from wfimagevae.dataset.toy.cifar10 import CIFAR10_SIZE
from wfimagevae.diffusion.guidance import Condition
from wfimagevae.engine.seeding import sample_noise, stable_hash
from wfimagevae.generate.autoencoders import load_autoencoder
from wfimagevae.generate.generator_files import (
    find_generator_facts,
    latent_facts,
    open_latent_space,
)
from wfimagevae.model.flow.velocity_model import VelocityModel
from wfimagevae.model.text import TextEncoder, open_text_encoder
from wfimagevae.model.weight_files import weights_fingerprint
from wfimagevae.task.flow_options import FlowOptions

log = logging.getLogger("wfimagevae")
DEFAULT_RESOLUTION = 32
_CACHED = ("tokens", "mask", "pooled")


def build_datasets(options: FlowOptions) -> tuple[TrainData, TrainData | None]:
    """Training data and held-out data; None for the latter where there is no validation.

    Raises:
        ValueError: data that is missing, unreadable or of another kind than the flags say.
    """
    # Flags of text that would do nothing.
    names = ("captions", "fixed_prompt_prefix", "text_length", "text_attention")
    names += ("sample_prompts", "prompt_file", "eval_clip_model")
    given = [name for name in names if getattr(options, name) not in (None, "", "none")]
    # Captions may decide which images are taken.
    if options.skip_words or options.languages or options.require_caption == "any":
        given = [name for name in given if name != "captions"]
    if given and not options.text_encoder:
        raise ValueError(f"--{given[0]} is for flows that take text: give --text_encoder as well")
    kind, seed = options.dataset, options.seed
    if options.captions != "none" and kind != "images":
        raise ValueError(f"--captions {options.captions} is for --dataset images, not for {kind}")
    if kind != "images":
        for name in StreamOptions.model_fields:
            usual = type(options).model_fields[name].default
            if not name.startswith(("wds_", "allow_")) and getattr(options, name) != usual:
                raise ValueError(f"--{name} is for --dataset images, not for --dataset {kind}")
    # Data that is made here, or comes with a part of its own to validate on.
    options = with_resolution(options)
    if kind in POINT_SETS:
        return PointDataset(kind, seed), PointDataset(kind, seed, split="test")
    if kind == "shapes":
        size, count = options.resolution, options.num_shapes
        prefix = options.fixed_prompt_prefix
        held_out = ShapesDataset(size, seed, 2000, first_index=count, augment=False, prefix=prefix)
        return ShapesDataset(size, seed, count, prefix=prefix), held_out
    if kind == "cifar10":
        root = only_source(options.data_path, kind)
        return Cifar10Dataset(root, seed), Cifar10Dataset(root, seed, "test", augment=False)
    # Files.
    if options.eval_steps and not options.eval_data_path:
        raise ValueError(f"--dataset {kind} needs --eval_data_path (or --eval_steps 0)")
    read = _latents
    if kind == "images":
        read = partial(build_image_data, better=better_captions(options))
    train = read(options, options.data_path)
    return train, read(options, options.eval_data_path, train) if options.eval_steps else None


def with_resolution(options: FlowOptions) -> FlowOptions:
    """The flags with the height and width that the data has, where it decides them.

    Raises:
        ValueError: data that is missing, or of another resolution than asked for.
    """
    kind, asked = options.dataset, options.resolution
    if kind in POINT_SETS:
        return options.changed(resolution=asked or 0)
    if kind not in DRAWN and not options.data_path:
        raise ValueError(f"--dataset {kind} needs --data_path")
    own = None
    if kind == "latents":
        own = read_record(only_source(options.data_path, kind))["resolution"]
    elif kind == "cifar10":
        own = CIFAR10_SIZE
    if own is not None and asked not in (None, own):
        raise ValueError(f"--resolution {asked}: this --dataset {kind} has {own} px; leave it out")
    return options.changed(resolution=own or asked or DEFAULT_RESOLUTION)


def _latents(options: FlowOptions, sources: Sources, train: TrainData | None = None) -> TrainData:
    source, text = only_source(sources, "latents"), "none"
    if options.text_encoder:
        is_cached = options.text_encoder != "bytes" and read_record(source).get("text")
        text = "embeddings" if is_cached else "captions"
    return LatentDataset(
        source,
        seed=options.seed,
        augment=train is None,
        like=None if train is None else train.record,
        prefix=options.fixed_prompt_prefix,
        text=text,
    )


@dataclass(frozen=True)
class FlowSpace:
    """Where the flow lives.

    Attributes:
        shape: Shape of one sample, (C, H, W) or (2,).
        num_classes: Classes that the network is conditioned on; 0 is none.
        encode: Gives a batch's data in this space, (B, *shape).
        decode: Gives images in [-1, 1]; None where samples are images, or points.
        facts: What generating needs to know: ``space``, ``class_names``, ``vae``, ``text``, ...
        condition: Gives what the network is told of a batch.
    """

    shape: tuple[int, ...]
    num_classes: int
    encode: Callable[[dict], Tensor]
    decode: Callable[[Tensor], Tensor] | None
    facts: dict
    condition: Callable[[dict], Condition | None]
    text: TextEncoder | None = None


def open_space(
    options: FlowOptions,
    dataset: TrainData,
    device: torch.device,
    held_out: TrainData | None = None,
) -> FlowSpace:
    """The space of a data set: its own, or that of the autoencoder that encodes its images.

    The captions of ``held_out`` data must suit the same text encoder.

    Raises:
        ValueError: an autoencoder that is missing, not the one of the latents, or does not say
            how its latents are normalised; a text encoder that is missing, or captions are.
    """
    class_names = dataset.class_names if options.class_conditional else []
    key, num_classes = dataset.data_key, len(class_names)
    text = _open_encoder(options, dataset, device, held_out) if options.text_encoder else None
    facts = {"class_names": class_names}
    facts |= {"text": text.facts} if text else {}

    def condition(batch: dict) -> Condition | None:
        """Classes, captions (unless the batch brings them encoded), both, or nothing."""
        if text is None:
            return batch["label"] if num_classes else None
        cached = {name: batch[name] for name in _CACHED if name in batch}
        encoded = cached or text(batch["caption"], batch.get("text"))
        return {"label": batch["label"]} | encoded if num_classes else encoded

    # Images that an autoencoder encodes while the flow trains.
    if options.vae and key == "image":
        shape, encode, decode, latent = _encoded(options, dataset, device)
        return FlowSpace(shape, num_classes, encode, decode, facts | latent, condition, text)
    # What the data set brings: latents, images or points.
    decode = None
    if key == "latent":
        facts |= latent_facts(dataset.record["vae"], dataset.shift, dataset.scale)
        facts["vae"]["source"] = options.vae or facts["vae"]["source"]
        if options.eval_steps and options.eval_num_images:
            decode = open_latent_space(facts, device).to_images
    elif options.vae:
        raise ValueError(f"--vae {options.vae} encodes images, not points")
    elif key == "image":
        facts["space"] = "pixel"
    else:
        facts |= {"space": "point", "dataset": options.dataset}
    shape = dataset.sample_shape
    return FlowSpace(shape, num_classes, itemgetter(key), decode, facts, condition, text)


def check_bucket_sizes(
    dataset: TrainData, space: FlowSpace, network: VelocityModel, factor: int = 1
) -> None:
    """ValueError for images that the network, or an enlargement by ``factor``, cannot take."""
    own, multiple = dataset.sample_shape[1:], network.size_multiple
    for height, width in getattr(dataset, "sizes", ()):  # of images alone
        step = own[1] // space.shape[-1] * math.lcm(multiple or 1, factor)
        if (height, width) == own or (multiple and not height % step and not width % step):
            continue
        asked = f"--aspect_buckets or --reduced_min_sizes gives images of {width} x {height} px"
        if multiple:
            needs = f"and --upscale_factor {factor} need" if factor > 1 else "needs"
            raise ValueError(f"{asked}: make them multiples of {step}, as this network {needs}")
        raise ValueError(
            f"{asked}, this network takes {own[1]} x {own[0]} alone: leave them out, or "
            "take a model whose position is 'rope' (FlowDiT-S/2, ...)"
        )


def _encoded(
    options: FlowOptions, dataset: TrainData, device: torch.device
) -> tuple[tuple[int, ...], Callable, Callable, dict]:
    """Shape, encode, decode and facts of latents that are drawn from the posterior of images."""
    autoencoder = load_autoencoder(options.vae, device)
    autoencoder.network.requires_grad_(False)
    if autoencoder.normalization is None:
        raise ValueError(
            f"--vae {options.vae} does not say how its latents are normalised; run "
            "scripts/latent_stats.py on it, or cache latents, which measures it"
        )
    size = dataset.sample_shape[-1]
    if size % autoencoder.multiple:
        raise ValueError(f"--resolution {size} must be a multiple of {autoencoder.multiple}")
    space = replace(autoencoder, precision=options.mix_precision)
    shape = tuple(space.to_latents(torch.zeros(1, *dataset.sample_shape, device=device)).shape[1:])
    seed = stable_hash("posterior", options.seed)

    def encode(batch: dict) -> Tensor:
        size = (side // autoencoder.multiple for side in batch["image"].shape[2:])
        noise = sample_noise(seed, batch["position"], (shape[0], *size), device)
        return space.to_latents(batch["image"], noise)

    vae = {"source": options.vae, "fingerprint": weights_fingerprint(autoencoder.network)}
    return shape, encode, space.to_images, latent_facts(vae, *autoencoder.normalization)


def _open_encoder(
    options: FlowOptions, dataset: TrainData, device: torch.device, held_out: TrainData | None
) -> TextEncoder:
    """The text encoder that the flags name.

    Raises:
        ValueError: training or held-out data without captions, or embeddings of another encoder
            cached beside it.
    """
    spec = options.text_encoder
    parts = {"this data": dataset} | ({} if held_out is None else {"the held-out data": held_out})
    cached = {}
    for name, part in parts.items():
        if part.data_key == "latent" and part.text_facts:
            cached[name] = part.text_facts
        if not part.has_captions:
            raise ValueError(
                f"--text_encoder {spec} needs captions, which {name} does not have: give "
                "--captions for images; latents must have been cached with them"
            )
    lengths = [options.text_length, *(facts["length"] for facts in cached.values())]
    length = next(filter(None, lengths), None)
    encoder = open_text_encoder(spec, device, length, options.text_encoder_precision)
    for name, facts in cached.items():
        keys = "kind", "length", "fingerprint", "precision"
        if wrong := [key for key in keys if encoder.facts.get(key) != facts.get(key)]:
            was = f"{facts['kind']}:{facts['source']}, length {facts['length']}"
            raise ValueError(
                f"--text_encoder {spec}: another {' and '.join(wrong)} than that of the encoder "
                f"whose embeddings are cached with {name} ({was}, weights "
                f"{facts['fingerprint'][:12]}); give that one, or cache these latents anew"
            )
    return encoder


def warn_of_another_encoder(pretrained: str, text: TextEncoder | None) -> None:
    """Warns where weights to start from learned texts as another encoder gives them."""
    before = (find_generator_facts(pretrained) or {}).get("text")
    if text is None or not before:
        return
    if any(before[fact] != text.facts[fact] for fact in ("kind", "fingerprint")):
        names = (
            ":".join(filter(None, (facts["kind"], facts["source"])))
            for facts in (before, text.facts)
        )
        words = "%s learned the texts of %s; those of %s mean nothing to it until it learns anew"
        log.warning(words, pretrained, *names)
