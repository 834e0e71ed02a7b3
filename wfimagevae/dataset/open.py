"""Training data made of images, wherever they are kept, as the data flags say."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wfimagevae.dataset.images.buckets import (
    BucketOrder,
    BucketRules,
    assign_buckets,
    describe_buckets,
)
from wfimagevae.dataset.images.crop_dataset import CropDataset, CropRules
from wfimagevae.dataset.images.image_sets import ImageParts, ImageSet, JoinedImages, open_folder
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.images.labels import Labels
from wfimagevae.dataset.mixture import Mixture
from wfimagevae.dataset.options import StreamOptions
from wfimagevae.dataset.order import Order, ShardOrder, ShuffledOrder
from wfimagevae.dataset.protocol import FlowData, Images
from wfimagevae.dataset.shards.read import captions_place, open_shards
from wfimagevae.dataset.shards.specs import is_shard_spec
from wfimagevae.dataset.text.captions import CAPTION_KINDS, Captions, check_captions
from wfimagevae.dataset.text.filters import (
    BetterCaptions,
    filtered,
    needs_records,
    needs_sizes,
    read_words,
)

log = logging.getLogger("wfimagevae")

Sources = str | Path | Sequence[str | Path]


def build_image_sets(
    options: StreamOptions, sources: Sources, held_out: Sources | None
) -> tuple[FlowData, FlowData | None]:
    """Images to train on, and held-out ones where there are sources of them."""
    better = _better_captions(options)
    train = _build(options, sources, None, better)
    return train, _build(options, held_out, train, better) if held_out else None


def build_image_data(
    options: StreamOptions, sources: Sources, train: FlowData | None = None
) -> FlowData:
    """Images to train on, or held-out ones where ``train`` is the training data.

    Held-out images have the training data's classes, and are middle crops of one size, every source
    by its size. Sources are folders, manifests and WebDataset shards; shards of several
    specifications are one set, unless --data_weights tells them apart.
    """
    return _build(options, sources, train, _better_captions(options))


def _build(
    options: StreamOptions,
    sources: Sources,
    train: FlowData | None,
    better: BetterCaptions | None,
) -> FlowData:
    is_train = train is None
    weights = options.data_weights if is_train else None
    names = None if is_train else train.class_names
    groups = _grouped(as_list(sources), weights)
    kind = Captions(options.captions).kind
    only_shards = all(is_shard_spec(group[0]) for group in groups)
    if kind not in CAPTION_KINDS and only_shards and is_train:
        raise ValueError(
            f"--captions {kind}: a file of names and captions is for folders, and shards have "
            "their own (--wds_caption_key); to replace those, give JSON lines by --better_captions"
        )
    parts: list[FlowData] = []
    for group in groups:
        parts.append(_build_part(options, group, names or None, better, is_train))
        names = parts[0].class_names
    if better and is_train:
        better.check_used()
    if len(parts) == 1 and weights is None:
        return parts[0]
    return Mixture(parts, weights, options.batch_size if is_train and _is_bucketed(options) else 1)


def open_images(options: StreamOptions, sources: Sources) -> Images:
    """The images of folders, manifests and shards, in their own order, to validate on."""
    parts = ImageParts(index_cache_dir=options.index_cache_dir)
    images = [
        open_shards(group, parts, options).images
        if is_shard_spec(group[0])
        else index_images(group[0], options.index_cache_dir)
        for group in _grouped(as_list(sources), None)
    ]
    return images[0] if len(images) == 1 else JoinedImages(images)


def check_only_images(options: StreamOptions) -> None:
    """Refuses flags of images (ValueError) for other data, which has no use for them."""
    names = ("data_weights", "aspect_buckets", "reduced_min_sizes", "better_captions")
    names += ("min_image_size", "max_aspect_ratio", "skip_nsfw", "languages", "skip_words")
    wrong = [name for name in names if getattr(options, name)]
    if options.min_similarity is not None:
        wrong.append("min_similarity")
    if wrong:
        raise ValueError(
            f"--{wrong[0]} is for --dataset images, not for --dataset {options.dataset}"
        )


def as_list(sources: Sources) -> list[str | Path]:
    return [sources] if isinstance(sources, str | Path) else list(sources)


def only_source(sources: Sources, kind: str) -> str | Path:
    """The one source of a kind of data that takes no more; ValueError for several."""
    first, *others = as_list(sources)
    if others:
        raise ValueError(f"--dataset {kind} takes one path, got {1 + len(others)}")
    return first


def _grouped(sources: list[str | Path], weights: Sequence[float] | None) -> list[list[str | Path]]:
    """What is one data set: each source, or all shards together where nothing weighs them."""
    if weights is not None and len(weights) != len(sources):
        raise ValueError(
            f"--data_weights needs one number a data path: {len(sources)} paths, "
            f"{len(weights)} weights"
        )
    if weights is not None:
        return [[source] for source in sources]
    shards = [source for source in sources if is_shard_spec(source)]
    folders = [[source] for source in sources if not is_shard_spec(source)]
    return folders + ([shards] if shards else [])


def _is_bucketed(options: StreamOptions) -> bool:
    return options.aspect_buckets > 0 or bool(options.reduced_min_sizes)


def _better_captions(options: StreamOptions) -> BetterCaptions | None:
    if options.better_captions and (options.reads_captions or options.skip_words):
        return BetterCaptions(options.better_captions)
    if options.better_captions:
        log.info("no captions are read here, so --better_captions changes nothing")
    return None


def _build_part(
    options: StreamOptions,
    sources: list[str | Path],
    class_names: list[str] | None,
    better: BetterCaptions | None,
    is_train: bool,
) -> CropDataset:
    is_shards, is_file = is_shard_spec(sources[0]), os.path.isfile(os.path.expanduser(sources[0]))
    if is_shards and options.use_manifest:
        raise ValueError(f"--use_manifest: {sources[0]} means shards, not a manifest")
    name = str(sources[0]) + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
    # Captions are read where they are shown, where words in them leave images out, and from
    # shards for a text encoder.
    captions = Captions(options.captions, options.fixed_prompt_prefix)
    must_read = bool(read_words(options.skip_words)) or (is_shards and options.text_encoder)
    if captions.kind == "none" and must_read:
        captions = replace(captions, kind="manifest" if is_file else "sidecar")
    wanted = ImageParts(
        Labels(options.labels, class_names),
        captions,
        sizes=needs_sizes(options) or _is_bucketed(options),
        records=needs_records(options) or (is_shards and better is not None),
        may_lack_captions=better is not None,
        index_cache_dir=options.index_cache_dir,
    )
    if is_shards:
        samples = open_shards(sources, wanted, options)
    else:
        samples = open_folder(sources[0], wanted, options.use_manifest)
    # Replace captions, then leave out what the filters do not want.
    if better:
        better.use(samples, captions.prefix, name)
        if is_shards and captions.kind != "none":
            check_captions(samples.captions, samples.images.name, captions_place(options))
    samples = filtered(samples, options, name)
    rules = CropRules(options.resolution, options.train_crop, augment=is_train)
    order = _order(options, samples, name) if is_train else None
    shown = samples.captions if options.reads_captions else None
    return CropDataset(samples.images, rules, options.seed, order, samples.labels, shown)


def _order(options: StreamOptions, samples: ImageSet, name: str) -> Order:
    seed, group_size = options.seed, options.wds_shuffle_shards

    def order_of(members) -> Order:
        if samples.shard is None:
            return ShuffledOrder(len(members), seed)
        # In step with each other, so that all buckets read the same shards.
        return ShardOrder(samples.shard[members], seed, group_size, int(samples.shard[-1]) + 1)

    if not _is_bucketed(options):
        return order_of(range(len(samples)))
    if options.reduced_min_sizes and options.train_crop == "native":
        raise ValueError(
            "--reduced_min_sizes scales images down, --train_crop native never does: use resized "
            "or center"
        )
    rules = BucketRules(
        options.resolution,
        options.aspect_buckets,
        tuple(options.reduced_min_sizes),
        enlarge=options.train_crop == "center",
    )
    buckets = assign_buckets(samples.sizes, rules, name)
    log.info("%s: %s", name, describe_buckets(buckets))
    order = BucketOrder(buckets, options.batch_size, seed, order_of)
    order.facts |= {
        "aspect_buckets": rules.multiple,
        "reduced_min_sizes": list(rules.reduced_sizes),
        "resolution": rules.resolution,
    }
    return order
