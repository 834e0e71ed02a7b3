"""The data that a flow learns, and the space in which it learns it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wfimagevae.dataset import (
    Cifar10Dataset,
    Labels,
    LatentDataset,
    PointDataset,
    ShapesDataset,
    TrainImageDataset,
)
from wfimagevae.dataset.protocol import FlowData
from wfimagevae.engine.seeding import sample_noise, stable_hash
from wfimagevae.eval.autoencoder import load_autoencoder, weights_fingerprint
from wfimagevae.eval.generation_args import POINT_SETS
from wfimagevae.eval.generator_files import latent_facts, open_latent_space
from wfimagevae.eval.latent_space import LatentSpace


def build_datasets(options: dict) -> tuple[FlowData, FlowData | None]:
    """Training data and held-out data; None for the latter where there is no validation.

    Raises:
        ValueError: data that is missing, unreadable or of another kind than the flags say.
    """
    kind, seed = options["dataset"], options["seed"]
    wants_held_out = options["eval_steps"] > 0
    if kind in POINT_SETS:
        return PointDataset(kind, seed), PointDataset(kind, seed, split="test")
    if kind == "shapes":
        size, count = options["resolution"], options["num_shapes"]
        held_out = ShapesDataset(size, seed, 2000, first_index=count, augment=False)
        return ShapesDataset(size, seed, count), held_out
    if not options["data_path"]:
        raise ValueError(f"--dataset {kind} needs --data_path")
    if kind == "cifar10":
        root = options["data_path"]
        return Cifar10Dataset(root, seed), Cifar10Dataset(root, seed, "test", augment=False)
    if wants_held_out and not options["eval_data_path"]:
        raise ValueError(
            f"--dataset {kind} needs --eval_data_path to validate on (or --eval_steps 0)"
        )
    build = _latents if kind == "latents" else _images
    train = build(options, options["data_path"], None)
    held_out = build(options, options["eval_data_path"], train) if wants_held_out else None
    return train, held_out


def _images(options: dict, source: str, train: FlowData | None) -> FlowData:
    names = None if train is None else train.class_names
    return TrainImageDataset(
        source,
        options["resolution"],
        seed=options["seed"],
        cache_dir=options["index_cache_dir"],
        train_crop=options["train_crop"],
        labels=Labels(options["labels"], names or None),
        augment=train is None,
    )


def _latents(options: dict, source: str, train: FlowData | None) -> FlowData:
    like = None if train is None else train.record
    return LatentDataset(source, seed=options["seed"], augment=train is None, like=like)


@dataclass(frozen=True)
class FlowSpace:
    """Where the flow lives.

    Attributes:
        shape: Of one sample: (C, H, W), or (2,).
        num_classes: What the network is conditioned on; 0 is nothing.
        encode: Gives a batch's data in this space, (B, *shape).
        decode: From there to images in [-1, 1]; None where samples are images, or points.
        facts: What generating needs to know: ``space``, ``class_names``, ``vae``, ...
    """

    shape: tuple[int, ...]
    num_classes: int
    encode: Callable[[dict], Tensor]
    decode: Callable[[Tensor], Tensor] | None
    facts: dict


def open_space(options: dict, dataset: FlowData, device: torch.device) -> FlowSpace:
    """The space of a data set: its own, or that of the autoencoder that encodes its images.

    Raises:
        ValueError: an autoencoder that is missing, not the one of the latents, or does not say
            how its latents are normalised.
    """
    num_classes = dataset.num_classes if options["class_conditional"] else 0
    facts = {"class_names": dataset.class_names if num_classes else []}
    key = dataset.data_key
    if key == "latent":
        facts |= latent_facts(dataset.record["vae"], dataset.shift, dataset.scale)
        facts["vae"]["source"] = options["vae"] or facts["vae"]["source"]
        wants_pictures = options["eval_steps"] and options["eval_num_images"]
        decode = open_latent_space(facts, device).decode if wants_pictures else None
        return FlowSpace(dataset.sample_shape, num_classes, lambda b: b[key], decode, facts)
    if key == "image" and options["vae"]:
        return _encoded(options, dataset, num_classes, facts, device)
    if options["vae"]:
        raise ValueError(f"--vae {options['vae']} encodes images, not points")
    facts["space"] = {"image": "pixel", "point": "point"}[key]
    if key == "point":
        facts["dataset"] = options["dataset"]
    return FlowSpace(dataset.sample_shape, num_classes, lambda b: b[key], None, facts)


def _encoded(
    options: dict, dataset: FlowData, num_classes: int, facts: dict, device: torch.device
) -> FlowSpace:
    """The latents of images that are encoded while training, drawn from the posterior."""
    autoencoder = load_autoencoder(options["vae"])
    autoencoder.network.to(device).requires_grad_(False)
    if autoencoder.normalization is None:
        raise ValueError(
            f"--vae {options['vae']} does not say how its latents are normalised; run "
            "scripts/latent_stats.py on it, or cache latents, which measures it"
        )
    size = dataset.sample_shape[-1]
    if size % autoencoder.multiple:
        raise ValueError(f"--resolution {size} must be a multiple of {autoencoder.multiple}")
    space = LatentSpace(autoencoder, *autoencoder.normalization, options["mix_precision"])
    shape = tuple(space.encode(torch.zeros(1, *dataset.sample_shape, device=device)).shape[1:])
    seed = stable_hash("posterior", options["seed"])

    def encode(batch: dict) -> Tensor:
        noise = sample_noise(seed, batch["position"], shape, device)
        return space.encode(batch["image"], noise)

    vae = {"source": options["vae"], "fingerprint": weights_fingerprint(autoencoder.network)}
    facts |= latent_facts(vae, *autoencoder.normalization)
    return FlowSpace(shape, num_classes, encode, space.decode, facts)
