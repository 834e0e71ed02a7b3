"""CIFAR-10 as torchvision keeps it on disk."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wfimagevae.dataset.images.transforms import mirror_half
from wfimagevae.dataset.order import ShuffledOrder
from wfimagevae.dataset.protocol import TrainData

CIFAR10_SIZE = 32  # px


class Cifar10Dataset(TrainData):
    """CIFAR-10's 50,000 or 10,000 images, held in memory, in shuffled order; see `TrainData`.

    Nothing is downloaded: ``root`` contains ``cifar-10-batches-py``. (CIFAR-10 as folders of
    images is read by `TrainImageDataset` with labels ``folder``.)
    """

    def __init__(
        self, root: str | Path, seed: int = 1234, split: str = "train", augment: bool = True
    ):
        is_train = {"train": True, "test": False}[split]
        from torchvision.datasets import CIFAR10

        root = os.path.abspath(os.path.expanduser(root))
        try:
            files = CIFAR10(root, train=is_train, download=False)
        except RuntimeError as error:
            raise ValueError(
                f"no whole CIFAR-10 in {root}: looked for {CIFAR10.base_folder} there. Unpack "
                f"{CIFAR10.url} in {root}, or give a folder of images with one sub-folder a class"
            ) from error
        self._pixels = files.data  # (N, 32, 32, 3) uint8
        self._labels = np.asarray(files.targets, np.int64)
        self.class_names = list(files.classes)
        self.sample_shape = (3, *self._pixels.shape[1:3])
        self.seed, self.augment = seed, augment
        self._order = ShuffledOrder(len(self._pixels), seed)

    def read_batch(self, positions: list[int]) -> dict[str, Any]:
        indices = [self._order.index(position) for position in positions]
        pixels = self._pixels[indices]  # a copy
        if self.augment:
            mirror_half(pixels, self.seed, positions)
        return {
            "pixels": torch.from_numpy(pixels),
            "label": torch.from_numpy(self._labels[indices]),
        }
