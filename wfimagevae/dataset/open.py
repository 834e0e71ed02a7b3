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
    filtered,
    needs_records,
    needs_sizes,
    read_better_captions,
    read_words,
    use_better_captions,
)

log = logging.getLogger("wfimagevae")

Sources = str | Path | Sequence[str | Path]


def build_image_sets(
    options: StreamOptions, sources: Sources, held_out: Sources | None
) -> tuple[FlowData, FlowData | None]:
    """Images to train on, and held-out ones where there are sources of them.

    Args:
        options: Of the training.
        sources: As for `build_image_data`.
        held_out: The same, of held-out images; or None.

    Raises:
        ValueError: as `build_image_data`; or one better caption fits images of both.
    """
    better = _BetterCaptions(options)
    train = build_image_data(options, sources, better=better)
    return train, build_image_data(options, held_out, train, better) if held_out else None


def build_image_data(
    options: StreamOptions,
    sources: Sources,
    train: FlowData | None = None,
    better: "_BetterCaptions | None" = None,
) -> FlowData:
    """Images to train on, or held-out ones.

    Args:
        options: Of the training.
        sources: Folders, manifests and WebDataset shards. Shards of several specifications are
            one set, unless --data_weights tells them apart.
        train: The training data, where these are held-out images: the same classes, middle crops
            of one size, every source by its size.
        better: The list of better captions, where other images share it.

    Raises:
        ValueError: a source without images, sources that do not go together, or options that
            cannot be met.
    """
    weights = options.data_weights if train is None else None
    names = train.class_names if train is not None else None
    groups = _grouped(as_list(sources), weights)
    _check_options(options, groups, train is not None)
    better = better or _BetterCaptions(options)
    parts: list[FlowData] = []
    for group in groups:
        parts.append(_build_part(options, group, names or None, better, train is not None))
        names = parts[0].class_names
    if train is None:
        better.check_used()
    if len(parts) == 1 and weights is None:
        return parts[0]
    block = options.batch_size if train is None and _is_bucketed(options) else 1
    return Mixture(parts, weights, block)


def open_images(options: StreamOptions, sources: Sources) -> Images:
    """The images of folders, manifests and shards, in their own order, to validate on.

    Raises:
        ValueError: a source without images.
    """
    parts = ImageParts(index_cache_dir=options.index_cache_dir)
    images = [
        open_shards(group, parts, options).images
        if is_shard_spec(group[0])
        else index_images(group[0], options.index_cache_dir)
        for group in _grouped(as_list(sources), None)
    ]
    return images[0] if len(images) == 1 else JoinedImages(images)


def check_only_images(options: StreamOptions) -> None:
    """Refuses flags of images for data of another kind, which has no use for them.

    Raises:
        ValueError: one of them is set.
    """
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
    """One source or several as a list."""
    return [sources] if isinstance(sources, str | Path) else list(sources)


def only_source(sources: Sources, kind: str) -> str | Path:
    """The one source of a kind of data that takes no more.

    Raises:
        ValueError: several sources.
    """
    found = as_list(sources)
    if len(found) > 1:
        raise ValueError(f"--dataset {kind} takes one path, got {len(found)}")
    return found[0]


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


def _check_options(options: StreamOptions, groups: list[list[str | Path]], held_out: bool) -> None:
    kind = _captions_of(options).kind
    only_shards = all(is_shard_spec(group[0]) for group in groups)
    if kind not in CAPTION_KINDS and only_shards and not held_out:
        raise ValueError(
            f"--captions {kind}: a file of names and captions is for folders, and shards have "
            "their own (--wds_caption_key); to replace those, give JSON lines by --better_captions"
        )


def _captions_of(options: StreamOptions) -> Captions:
    return Captions(options.captions, options.fixed_prompt_prefix)


def _is_bucketed(options: StreamOptions) -> bool:
    return options.aspect_buckets > 0 or bool(options.reduced_min_sizes)


class _BetterCaptions:
    """The list of --better_captions, if this training reads captions at all."""

    def __init__(self, options: StreamOptions):
        self._file = options.better_captions
        self._prefix = options.fixed_prompt_prefix
        self._owners: dict[str, str] = {}
        self._captions = None
        if self._file and (options.reads_captions or options.skip_words):
            self._captions = read_better_captions(self._file)
        elif self._file:
            log.info("no captions are read here, so --better_captions changes nothing")

    @property
    def is_on(self) -> bool:
        """Whether there is a list to read."""
        return self._captions is not None

    def apply(self, samples: ImageSet, name: str) -> None:
        """Sets what the list has for these images."""
        if self.is_on:
            use_better_captions(samples, self._captions, self._prefix, name, self._owners)

    def check_used(self) -> None:
        """Raises ValueError where the list had nothing for any image."""
        if self.is_on and not self._owners:
            some = ", ".join(list(self._captions)[:2])
            raise ValueError(
                f"--better_captions {self._file} has no caption for any image; its names are "
                f"{some} ..."
            )


def _build_part(
    options: StreamOptions,
    sources: list[str | Path],
    names: list[str] | None,
    better: _BetterCaptions,
    held_out: bool,
) -> CropDataset:
    samples = _open(options, sources, names, better)
    name = _name_of(sources)
    samples = filtered(samples, options, name)
    rules = CropRules(options.resolution, options.train_crop, augment=not held_out)
    order = None if held_out else _order(options, samples, name)
    captions = samples.captions if options.reads_captions else None
    return CropDataset(samples.images, rules, options.seed, order, samples.labels, captions)


def _name_of(sources: list[str | Path]) -> str:
    return str(sources[0]) + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")


def _open(
    options: StreamOptions,
    sources: list[str | Path],
    names: list[str] | None,
    better: _BetterCaptions,
) -> ImageSet:
    is_shards, is_file = is_shard_spec(sources[0]), os.path.isfile(os.path.expanduser(sources[0]))
    if is_shards and options.use_manifest:
        raise ValueError(f"--use_manifest: {sources[0]} means shards, not a manifest")
    captions = _captions_of(options)
    must_read = bool(read_words(options.skip_words)) or (is_shards and options.text_encoder)
    if captions.kind == "none" and must_read:
        captions = replace(captions, kind="manifest" if is_file else "sidecar")
    wanted = ImageParts(
        Labels(options.labels, names),
        captions,
        sizes=needs_sizes(options) or _is_bucketed(options),
        records=needs_records(options) or (is_shards and better.is_on),
        may_lack_captions=better.is_on,
        index_cache_dir=options.index_cache_dir,
    )
    if is_shards:
        samples = open_shards(sources, wanted, options)
    else:
        samples = open_folder(sources[0], wanted, options.use_manifest)
    better.apply(samples, _name_of(sources))
    if is_shards and samples.captions is not None and better.is_on:
        check_captions(samples.captions, samples.images.name, captions_place(options))
    return samples


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
