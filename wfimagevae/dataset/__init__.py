"""Training data: images from disk, cached latents, drawn shapes, points; order and loaders."""

import importlib

_MODULES = {
    "images.buckets": ("BucketOrder",),
    "images.crop_dataset": ("CropDataset", "CropRules", "NoReadableImage", "TrainImageDataset"),
    "images.held_out": ("IndexedImages", "ValidImageDataset", "collate_images"),
    "images.labels": ("Labels",),
    "latents.latent_dataset": ("LatentDataset",),
    "loader": ("TrainLoader", "batch_loader", "valid_loader"),
    "mixture": ("Mixture",),
    "order": ("ShardOrder", "ShuffledOrder"),
    "protocol": ("DataError", "TrainData"),
    "shards.read": ("ShardImages", "open_shards"),
    "text.captions": ("Captions",),
    "toy.cifar10": ("Cifar10Dataset",),
    "toy.points": ("PointDataset",),
    "toy.shapes": ("ShapesDataset",),
}
_EXPORTS = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
