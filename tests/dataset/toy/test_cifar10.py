import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, cifar

from tests.dataset.reading import read_by
from tests.refusals import refused
from wfimagevae.dataset import Cifar10Dataset, TrainLoader

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Six batches of four images in CIFAR-10's own format; pixels tell the label."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    files = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for i, name in enumerate(files):
        labels = [(4 * i + j) % 10 for j in range(4)]
        ramp = np.tile(np.arange(32, dtype=np.uint8), 32 * 3)  # brighter to the right
        data = np.stack([ramp + 20 * label for label in labels])
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    return tmp_path


def test_images_of_both_splits_come_with_their_labels(root):
    dataset = Cifar10Dataset(root)
    assert len(dataset) == 20 and dataset.class_names == NAMES and dataset.num_classes == 10
    batch = next(TrainLoader(dataset, batch_size=20, options=read_by(0)))
    assert batch["image"].shape == (20, *dataset.sample_shape) == (20, 3, 32, 32)
    darkest = ((batch["image"].amin((1, 2, 3)) + 1) * 127.5).round()
    assert torch.equal(darkest.long(), 20 * batch["label"])
    dataset = Cifar10Dataset(root, split="test", augment=False)
    assert sorted(dataset.read_batch([0, 1, 2, 3])["label"].tolist()) == [0, 1, 2, 3]


def test_half_are_mirrored_when_augmenting_and_none_otherwise(root):
    def mirrored(dataset):
        pixels = dataset.read_batch(list(range(200)))["pixels"]
        return (pixels[:, 0, 0, 0] > pixels[:, 0, -1, 0]).tolist()

    assert sum(mirrored(Cifar10Dataset(root, augment=False))) == 0
    flips = mirrored(Cifar10Dataset(root))
    assert 70 < sum(flips) < 130 and flips[:20] != flips[20:40]  # anew each epoch
    assert mirrored(Cifar10Dataset(root)) == flips


def test_absence_says_where_and_how(tmp_path):
    message = rf"{tmp_path}: looked for cifar-10-batches-py.*Unpack https?://"
    refused(message, Cifar10Dataset, tmp_path)
