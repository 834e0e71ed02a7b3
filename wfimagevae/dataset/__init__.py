"""Training data: images from disk, cached latents, drawn shapes, points; order and loaders."""

import importlib

_EXPORTS = {
    "TrainImageDataset": "image_dataset",
    "ValidImageDataset": "image_dataset",
    "NoReadableImage": "crop_dataset",
    "collate_images": "image_dataset",
    "CropDataset": "crop_dataset",
    "CropRules": "crop_dataset",
    "Labels": "labels",
    "Captions": "captions",
    "Cifar10Dataset": "cifar10",
    "ShapesDataset": "shapes",
    "PointDataset": "points",
    "LatentDataset": "latents",
    "IndexedImages": "indexed_images",
    "Mixture": "mixture",
    "BucketOrder": "buckets",
    "ShardImages": "web_shards",
    "open_shards": "web_shards",
    "DataError": "protocol",
    "TrainData": "protocol",
    "FlowData": "protocol",
    "TrainLoader": "loader",
    "batch_loader": "loader",
    "valid_loader": "loader",
    "PositionSampler": "sampler",
    "ShuffledOrder": "order",
    "ShardOrder": "order",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
