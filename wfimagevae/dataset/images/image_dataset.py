"""The two image datasets: endless random crops to train on, centre crops to measure on."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from wfimagevae.dataset.images.crop_dataset import CropDataset, CropRules
from wfimagevae.dataset.images.decode import UnreadableImage
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.images.labels import Labels, read_labels
from wfimagevae.dataset.images.transforms import center_crop, to_signed_unit
from wfimagevae.dataset.protocol import Images
from wfimagevae.dataset.text.captions import Captions, read_captions


class TrainImageDataset(CropDataset):
    """Square crops, half of them mirrored, in an endless shuffled order; labels, captions or not.

    The sample at a position depends on (seed, position) and the files alone, never on the worker
    or rank that reads it. An unreadable image is replaced by the next readable one in the order,
    cropped with the random numbers of the position it stands in for.

    Args:
        source: Folder of images, scanned recursively, or JSON-lines manifest.
        resolution: Height and width of a crop, in pixels. An image whose height or width is
            smaller counts as unreadable: nothing is enlarged (but by ``center``).
        seed: Of the order and of the crops.
        cache_dir: Where the list of images is kept between runs; None for the default.
        train_crop: ``native`` crops at the image's own scale; ``resized`` first shrinks its short
            side to ``resolution``, so that the crop is random along the long side only;
            ``center`` takes `resized_center_crop`, as class-conditional ImageNet models do.
        use_manifest: Insist that ``source`` is a manifest.
        labels: Where the classes come from; a bare kind of `Labels` will do.
        captions: Where the captions come from; a bare kind of `Captions` will do.
        augment: False takes the middle in place of random crops and mirrors nothing, for data
            held out.

    Attributes:
        sample_shape: (3, resolution, resolution).
        num_classes: 0 without labels.
        class_names: One a class, in the order of their numbers.
        has_captions: Whether samples come with captions.
        data_key: ``image``.

    Raises:
        ValueError: a bad option, ``source`` has no images, or labels or captions are missing; see
            `read_labels` and `read_captions`.
    """

    def __init__(  # noqa: PLR0913 - each is independent of the others
        self,
        source: str | Path,
        resolution: int,
        seed: int = 1234,
        cache_dir: str | Path | None = None,
        train_crop: str = "native",
        use_manifest: bool = False,
        labels: str | Labels = "none",
        captions: str | Captions = "none",
        augment: bool = True,
    ):
        rules = CropRules(resolution, train_crop, augment)
        images = index_images(source, cache_dir, use_manifest)
        labels = Labels(labels) if isinstance(labels, str) else labels
        captions = Captions(captions) if isinstance(captions, str) else captions
        super().__init__(
            images,
            rules,
            seed,
            labels=read_labels(source, images, labels),
            captions=read_captions(source, images, captions),
        )


class ValidImageDataset(Dataset):
    """Images in sorted order, resized and centre-cropped: the same on every machine and run.

    Args:
        source: Folder of images, scanned recursively, JSON-lines manifest, or images already
            listed.
        resolution: The short side is resized to this many pixels (enlarged too) by
            `decode.INTERPOLATION`; None keeps the native size.
        crop_size: Height and width of the centre crop. None is ``resolution``; where that is None
            as well, the whole image.
        subset_size: Use this many images, evenly spaced over the sorted list; 0 uses all.
        cache_dir: Where the list of images is kept between runs; None for the default.

    Attributes:
        paths: Relative posix path of each image, sorted.

    Raises:
        ValueError: a bad option, or ``source`` has no images.
    """

    def __init__(
        self,
        source: str | Path | Images,
        resolution: int | None = None,
        crop_size: int | None = None,
        subset_size: int = 0,
        cache_dir: str | Path | None = None,
    ):
        crop_size = resolution if crop_size is None else crop_size
        for name, value in (("resolution", resolution), ("crop_size", crop_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 pixel, got {value}")
        if resolution is not None and crop_size > resolution:
            raise ValueError(
                f"crop_size {crop_size} does not fit into images resized to {resolution}; "
                "lower the crop size or raise the resolution"
            )
        if subset_size < 0:
            raise ValueError(f"subset_size must be 0 (all images) or more, got {subset_size}")
        is_path = isinstance(source, str | Path)
        self.images = index_images(source, cache_dir) if is_path else source
        self.resolution, self.crop_size = resolution, crop_size
        total = len(self.images)
        count = min(subset_size, total) or total
        self._indices = [i * total // count for i in range(count)]

    @property
    def paths(self) -> list[str]:
        return [self.images.relative(i) for i in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def index(self, i: int) -> int:
        """The number of image ``i`` of these among all images of the source."""
        return self._indices[i]

    def __getitem__(self, i: int) -> dict:
        """Image ``i``.

        Returns:
            ``image`` float32 (3, h, w) in [-1, 1], channels last in memory, or None if the file is
            unreadable; ``path``, relative, with forward slashes; ``error``, the reason or None.
        """
        index = self._indices[i]
        sample = {"image": None, "path": self.images.relative(index), "error": None}
        min_side = self.crop_size if self.resolution is None and self.crop_size else 1
        try:
            image = self.images.open(index, min_side, self.resolution)
        except UnreadableImage as error:
            return sample | {"error": str(error)}
        return sample | {
            "image": to_signed_unit(torch.from_numpy(center_crop(image, self.crop_size)))
        }


def collate_images(samples: list[dict]) -> dict:
    """Stacks the readable samples of a `ValidImageDataset` and lists the others.

    Returns:
        ``image`` (n, 3, h, w), channels last in memory, or None if n is 0; ``path``, a list of n;
        ``unreadable``, a list of (path, reason).
    """
    readable = [sample for sample in samples if sample["error"] is None]
    return {
        "image": _stack([sample["image"] for sample in readable]),
        "path": [sample["path"] for sample in readable],
        "unreadable": [(s["path"], s["error"]) for s in samples if s["error"] is not None],
    }


def _stack(images: list[Tensor]) -> Tensor | None:
    if not images:
        return None
    return torch.stack([image.movedim(0, -1) for image in images]).movedim(-1, 1)
