"""Checkpoints in shards: folders of torch.distributed.checkpoint, whose tensors are read when used.

One file beside the shards holds all else, and tensors without values (on ``meta``) in their place.
"""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, filesystem, metadata
from torch.utils._pytree import tree_map_only

from wfimagevae.files import FACTS, file_version, read_torch_file, zip_damage

# All that an index of shards consists of; nothing else is unpickled.
_INDEX = [metadata.Metadata, metadata.MetadataIndex, metadata.TensorStorageMetadata]
_INDEX += [metadata.ChunkStorageMetadata, metadata.TensorProperties, metadata._MEM_FORMAT_ENCODING]
_INDEX += [filesystem._StorageInfo]


def mapped(state: Any, change: Callable[[str, Tensor], Any], name: str = "") -> Any:
    """Nested dicts and lists with ``change(name, tensor)`` for each tensor, by its dotted name."""
    if isinstance(state, Tensor):
        return change(name, state)
    if isinstance(state, dict):
        result = copy.copy(state)  # with the versions that a module's state dict carries along
        for key, value in state.items():
            result[key] = mapped(value, change, f"{name}.{key}" if name else str(key))
        return result
    if isinstance(state, list):
        return [mapped(value, change, f"{name}.{i}") for i, value in enumerate(state)]
    return state


class Stored(Tensor):
    """A tensor in shards on disk, read whenever it takes part in anything, and not kept."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, reader: FileSystemReader, index: metadata.Metadata, like: Tensor):
        stored = Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device="cpu")
        stored.reader, stored.index = reader, index  # of this tensor alone
        return stored

    def read(self, into: Tensor | None = None) -> Tensor:
        """The whole tensor on the CPU, or, ``into`` a DTensor, this process's shards alone."""
        into = torch.empty(self.shape, dtype=self.dtype) if into is None else into
        planner = DefaultLoadPlanner()
        planner.set_up_planner(dict.fromkeys(self.index.state_dict_metadata, into), self.index)
        self.reader.read_data(planner.create_local_plan(), planner).wait()
        return into

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(cls, cls.read, (args, kwargs or {}))
        return func(*args, **kwargs)


def read_sharded(path: Path) -> dict[str, Any]:
    """What a folder of shards holds, tensors as `Stored`; verified and read as `read_torch_file`.

    Another number of processes than wrote it may read it, or one alone: none talks to another.
    """
    with torch.serialization.safe_globals(_INDEX):
        content = read_torch_file(path / FACTS)
    index, facts = content.get("index"), content.get("facts")
    if not isinstance(index, metadata.Metadata):
        raise ValueError(f"{path / FACTS} does not tell of shards: {path} is no checkpoint")
    for place in index.storage_data.values() if os.environ.get("LOCAL_RANK", "0") == "0" else ():
        file = os.path.abspath(path / place.relative_path)
        damage = zip_damage(file, file_version(file), place.offset, place.length)
        if damage:
            raise ValueError(f"{file} is damaged or missing: {damage}")
    reader = FileSystemReader(path)
    reader.set_up_storage_reader(index, is_coordinator=True)

    def stored(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        return Stored(reader, metadata.Metadata({name: index.state_dict_metadata[name]}), tensor)

    return mapped(facts, stored)
