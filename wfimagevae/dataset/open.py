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
from wfimagevae.dataset.images.image_sets import FolderOptions, ImageSet, JoinedImages, open_folder
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.images.labels import Labels
from wfimagevae.dataset.mixture import Mixture
from wfimagevae.dataset.options import StreamOptions
from wfimagevae.dataset.order import Order, ShardOrder, ShuffledOrder
from wfimagevae.dataset.protocol import FlowData, Images
from wfimagevae.dataset.shards.read import ShardOptions, captions_place, open_shards
from wfimagevae.dataset.shards.remote import RemoteOptions
from wfimagevae.dataset.shards.specs import is_shard_spec
from wfimagevae.dataset.text.captions import CAPTION_KINDS, Captions, check_captions
from wfimagevae.dataset.text.filters import (
    SampleFilters,
    filtered,
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
    found = []
    for group in _grouped(as_list(sources), None):
        if is_shard_spec(group[0]):
            found.append(open_shards(group, _shard_options(options)).images)
        else:
            found.append(index_images(group[0], options.index_cache_dir))
    return found[0] if len(found) == 1 else JoinedImages(found)


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

    def apply(self, found: ImageSet, told: str) -> None:
        """Sets what the list has for these images."""
        if self.is_on:
            use_better_captions(found, self._captions, self._prefix, told, self._owners)

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
    filters = _filters(options)
    found = _open(options, sources, filters, names, better)
    told = _told(sources)
    found = filtered(found, filters, told)
    rules = CropRules(options.resolution, options.train_crop, augment=not held_out)
    order = None if held_out else _order(options, found, told)
    captions = found.captions if options.reads_captions else None
    return CropDataset(found.images, rules, options.seed, order, found.labels, captions)


def _told(sources: list[str | Path]) -> str:
    return str(sources[0]) + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")


def _filters(options: StreamOptions) -> SampleFilters:
    return SampleFilters(
        options.min_image_size,
        options.max_aspect_ratio,
        options.min_similarity,
        options.skip_nsfw,
        tuple(language.strip().lower() for language in options.languages),
        read_words(options.skip_words),
    )


def _open(
    options: StreamOptions,
    sources: list[str | Path],
    filters: SampleFilters,
    names: list[str] | None,
    better: _BetterCaptions,
) -> ImageSet:
    captions = _captions_of(options)
    labels = Labels(options.labels, names)
    if is_shard_spec(sources[0]):
        if options.use_manifest:
            raise ValueError(f"--use_manifest: {sources[0]} means shards, not a manifest")
        wanted = _shard_options(
            options,
            labels,
            with_captions=filters.need_captions
            or captions.kind != "none"
            or bool(options.text_encoder),
            with_records=filters.need_records or better.is_on,
            may_lack_captions=better.is_on,
        )
        found = open_shards(sources, wanted)
        better.apply(found, _told(sources))
        if wanted.with_captions and better.is_on:
            check_captions(found.captions, found.images.name, captions_place(wanted))
        return found
    (source,) = sources
    is_file = os.path.isfile(os.path.expanduser(source))
    if captions.kind == "none" and filters.need_captions:
        captions = replace(captions, kind="manifest" if is_file else "sidecar")
    folder = FolderOptions(
        labels,
        captions,
        options.use_manifest,
        with_sizes=filters.need_sizes or _is_bucketed(options),
        with_records=filters.need_records,
        index_cache_dir=options.index_cache_dir,
    )
    found = open_folder(source, folder)
    better.apply(found, _told(sources))
    return found


def _shard_options(
    options: StreamOptions, labels: Labels | None = None, **wanted: bool
) -> ShardOptions:
    labels = labels or Labels()
    return ShardOptions(
        options.wds_image_key,
        options.wds_caption_key,
        options.wds_label_key,
        options.wds_json_key,
        with_labels=labels.kind != "none",
        class_names=labels.class_names,
        caption_prefix=options.fixed_prompt_prefix,
        index_cache_dir=options.index_cache_dir,
        remote=RemoteOptions(
            options.wds_cache_dir,
            int(options.wds_cache_gb * 1e9),
            read_at_a_time=2 * options.wds_shuffle_shards,
        ),
        **wanted,
    )


def _order(options: StreamOptions, found: ImageSet, told: str) -> Order:
    seed, group_size = options.seed, options.wds_shuffle_shards

    def order_of(members) -> Order:
        if found.shard is None:
            return ShuffledOrder(len(members), seed)
        # In step with each other, so that all buckets read the same shards.
        return ShardOrder(found.shard[members], seed, group_size, int(found.shard[-1]) + 1)

    if not _is_bucketed(options):
        return order_of(range(len(found)))
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
    buckets = assign_buckets(found.sizes, rules, told)
    log.info("%s: %s", told, describe_buckets(buckets))
    order = BucketOrder(buckets, options.batch_size, seed, order_of)
    order.facts |= {
        "aspect_buckets": rules.multiple,
        "reduced_min_sizes": list(rules.reduced_sizes),
        "resolution": rules.resolution,
    }
    return order
