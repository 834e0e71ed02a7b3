"""Training data made of images, wherever they are kept, as the data flags say."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wfimagevae.dataset.images.buckets import BucketOrder, assign_buckets
from wfimagevae.dataset.images.crop_dataset import CropDataset, CropRules
from wfimagevae.dataset.images.image_sets import ImageParts, ImageSet, open_folder
from wfimagevae.dataset.images.index import EXTENSIONS, index_images
from wfimagevae.dataset.images.labels import Labels
from wfimagevae.dataset.mixture import Mixture
from wfimagevae.dataset.options import CAPTION_KINDS, StreamOptions
from wfimagevae.dataset.order import Order, ShardOrder, ShuffledOrder
from wfimagevae.dataset.protocol import Images, TrainData
from wfimagevae.dataset.shards.read import open_shards
from wfimagevae.dataset.shards.specs import URL
from wfimagevae.dataset.text.captions import Captions, check_captions
from wfimagevae.dataset.text.filters import BetterCaptions, filtered

log = logging.getLogger("wfimagevae")

Sources = Sequence[str | Path]


def build_image_data(
    options: StreamOptions,
    sources: Sources,
    train: TrainData | None = None,
    better: BetterCaptions | None = None,
) -> TrainData:
    """Images to train on, or held-out ones where ``train`` is the training data.

    Held-out images have the training data's classes, and are middle crops of one size, every source
    by its size. Sources are folders, manifests and WebDataset shards; shards of several
    specifications are one set, unless --data_weights tells them apart. ``better`` captions, if they
    are not those of the flags alone, are shared with other data.
    """
    is_train = train is None
    weights = options.data_weights if is_train else None
    names = None if is_train else train.class_names or None
    groups = _grouped(sources, weights)
    is_file = options.captions not in CAPTION_KINDS
    is_for_folders = is_train and (is_file or options.captions == "filename")
    if is_for_folders and all(is_shards for _, is_shards in groups):
        named = Captions(options.captions).file if is_file else options.captions
        own = "their own (--wds_caption_key); to replace those, give --better_captions"
        raise ValueError(f"--captions {named} is for folders, and shards have {own}")
    better = better or better_captions(options)
    ratio, usual = options.resize_ratio, type(options).model_fields["resize_ratio"].default
    if ratio != usual and options.train_crop != "resized":
        raise ValueError(f"--resize_ratio {ratio} is for --train_crop resized")
    parts: list[TrainData] = []
    for group, is_shards in groups:
        parts.append(_build_part(options, group, is_shards, names, better, is_train))
        names = parts[0].class_names or None
    if better and is_train:
        better.check_used()
    if len(parts) == 1 and weights is None:
        return parts[0]
    # Batches of buckets, which are of one size, come from one set.
    return Mixture(parts, weights, parts[0].order_facts.get("batch_size", 1))


def better_captions(options: StreamOptions) -> BetterCaptions | None:
    """The better captions that the flags name; None where there are none, or nobody reads them."""
    required = options.require_caption
    if not options.better_captions:
        if required == "better":
            raise ValueError("--require_caption better: give --better_captions FILE as well")
        return None
    if not (options.text_encoder or options.skip_words or required != "no"):
        log.info("no captions are read here, so --better_captions changes nothing")
        return None
    least = options.better_captions_min_score
    return BetterCaptions(options.better_captions, least, alone=required == "better")


def open_images(options: StreamOptions, sources: Sources) -> list[Images]:
    """The images of folders, manifests and shards, to validate on, as one set or several."""
    cache_dir = options.index_cache_dir
    return [
        open_shards(group, ImageParts(index_cache_dir=cache_dir), options).images
        if is_shards
        else index_images(group[0], cache_dir)
        for group, is_shards in _grouped(sources)
    ]


def only_source(sources: Sources, kind: str) -> str | Path:
    """The one source of a kind of data that takes no more; ValueError for several."""
    first, *others = sources
    if others:
        raise ValueError(f"--dataset {kind} takes one path, got {1 + len(others)}")
    return first


def is_shard_spec(source: str | Path) -> bool:
    """Whether a data source means WebDataset shards rather than a folder or manifest of images.

    A folder means shards if it has .tar files, and no image, directly inside.
    """
    text = str(source)
    if URL.match(text):
        return True
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        kinds = {os.path.splitext(name.lower())[1] for name in os.listdir(path)}
        return ".tar" in kinds and kinds.isdisjoint(EXTENSIONS)
    return bool(re.search(r"\.tar(\.\w+)?$|\.tgz$", text.lower()))


def _grouped(
    sources: Sources, weights: Sequence[float] | None = None
) -> list[tuple[list[str | Path], bool]]:
    """The sources of each data set, and whether they are shards.

    A set is one source, or all shards together where nothing weighs them.
    """
    if weights is not None and len(weights) != len(sources):
        raise ValueError(
            f"--data_weights needs one number a data path: {len(sources)} paths, "
            f"{len(weights)} weights"
        )
    kinds = [(source, is_shard_spec(source)) for source in sources]
    shards = [source for source, is_shards in kinds if is_shards and weights is None]
    alone = [([source], is_shards) for source, is_shards in kinds if source not in shards]
    return alone + ([(shards, True)] if shards else [])


def _build_part(
    options: StreamOptions,
    sources: list[str | Path],
    is_shards: bool,
    class_names: list[str] | None,
    better: BetterCaptions | None,
    is_train: bool,
) -> CropDataset:
    if options.use_manifest and not os.path.isfile(os.path.expanduser(sources[0])):
        raise ValueError(f"--use_manifest: {sources[0]} is no file; drop the flag to read it all")
    name = str(sources[0]) + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
    is_bucketed = options.aspect_buckets > 0 or bool(options.reduced_min_sizes)
    filters_sizes = options.min_image_size > 0 or options.max_aspect_ratio > 0
    filters_records = options.skip_nsfw or bool(options.languages)
    filters_records |= options.min_similarity is not None
    filters_records |= filters_sizes and options.size_fields is not None
    # Captions are read where they are shown, where words in them leave images out, and from
    # shards for a text encoder.
    captions = options.captions
    is_asked = options.skip_words or options.require_caption == "any"
    if captions == "none" and (is_asked or (is_shards and options.text_encoder)):
        captions = "manifest" if os.path.isfile(os.path.expanduser(sources[0])) else "sidecar"
    wanted = ImageParts(
        Labels(options.labels, class_names),
        Captions(captions, options.fixed_prompt_prefix),
        sizes=filters_sizes or is_bucketed,
        records=filters_records or (is_shards and better is not None),
        index_cache_dir=options.index_cache_dir,
    )
    if is_shards:
        samples = open_shards(sources, wanted, options)
    else:
        samples = open_folder(sources[0], wanted)
    # Replace captions, then leave out what the filters do not want.
    if better:
        better.use(samples, options.fixed_prompt_prefix, name)
    if is_shards and captions != "none":
        place = f"looked under {options.wds_caption_key}; --wds_caption_key"
        check_captions(samples.captions, samples.images.name, place)
    if filters_sizes or filters_records or options.skip_words or options.require_caption != "no":
        samples = filtered(samples, options, name)
    # Held-out images, and those of a folder, are shuffled all together.
    order = None
    if is_train and is_bucketed:
        order = _bucket_order(options, samples, name)
    elif is_train and is_shards:
        order = ShardOrder(samples.shard, options.seed, options.wds_shuffle_shards)
    crop = options.train_crop, is_train, options.resize_ratio
    rules = CropRules(options.resolution, *crop, options.random_hflip, options.color_jitter)
    shown = samples.captions if options.text_encoder else None
    return CropDataset(samples.images, rules, options.seed, order, samples.labels, shown)


def _bucket_order(options: StreamOptions, samples: ImageSet, name: str) -> BucketOrder:
    buckets = assign_buckets(samples.sizes, options, name)

    def order_of(members: np.ndarray) -> Order:
        if samples.shard is None:
            return ShuffledOrder(len(members), options.seed)
        # In step with each other, so that all buckets read the same shards.
        shard, num_shards = samples.shard[members], int(samples.shard[-1]) + 1
        return ShardOrder(shard, options.seed, options.wds_shuffle_shards, num_shards)

    order = BucketOrder(buckets, options.batch_size, options.seed, order_of)
    names = ("aspect_buckets", "reduced_min_sizes", "resolution")
    order.facts |= {name: getattr(options, name) for name in names}
    return order
