"""Training data: images from disk, cached latents, drawn shapes, points; order and loaders."""

import importlib

_EXPORTS = {
    "TrainImageDataset": "images.crop_dataset",
    "ValidImageDataset": "images.held_out",
    "NoReadableImage": "images.crop_dataset",
    "collate_images": "images.held_out",
    "CropDataset": "images.crop_dataset",
    "CropRules": "images.crop_dataset",
    "Labels": "images.labels",
    "Captions": "text.captions",
    "Cifar10Dataset": "toy.cifar10",
    "ShapesDataset": "toy.shapes",
    "PointDataset": "toy.points",
    "LatentDataset": "latents.latent_dataset",
    "IndexedImages": "images.held_out",
    "Mixture": "mixture",
    "BucketOrder": "images.buckets",
    "ShardImages": "shards.read",
    "open_shards": "shards.read",
    "DataError": "protocol",
    "TrainData": "protocol",
    "FlowData": "protocol",
    "TrainLoader": "loader",
    "batch_loader": "loader",
    "valid_loader": "loader",
    "PositionSampler": "loader",
    "ShuffledOrder": "order",
    "ShardOrder": "order",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
