"""One network on several processes: sharded (FSDP2), and its whole state."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from wfimagevae.sharded_files import Stored, mapped


def shard(
    network: nn.Module,
    blocks: Sequence[nn.Module],
    device: torch.device,
    precision: str = "fp32",
    within_node: bool = False,
) -> None:
    """Shards a network's parameters over all processes, in place (FSDP2).

    Under bf16, blocks of layers that autocast rounds anyway are gathered rounded, half the bytes;
    gradients are summed in float32. ``within_node``, each machine holds all shards, and machines
    share gradients only.

    Call it before optimizers and averages are made, to hold shards too. From there on calls of the
    network are collective. It may come on the CPU, alike on every process; ``blocks``, its repeated
    parts, move to the device and are gathered one by one. `load_state_dict` takes whole tensors.
    """
    if not dist.is_initialized():
        raise ValueError("--fsdp needs several processes: torchrun --nproc_per_node N ...")
    # One shard of each parameter on every process, block by block and then the rest.
    sizes, size = (dist.get_world_size(),), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if within_node:
        if sizes[0] % size:
            raise ValueError(f"--fsdp_hybrid: {sizes[0]} processes are not machines of {size} each")
        sizes = sizes[0] // size, size
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("nodes", "shards")[-len(sizes) :])
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # fully_shard takes no channels_last
    for part in (*blocks, network):
        policy = MixedPrecisionPolicy() if part is network else _gathering(part, precision)
        fully_shard(part, mesh=mesh, mp_policy=policy)
        if device.type == "cpu":  # Gloo sums where it is asked for a mean (PyTorch 2.8)
            part.set_force_sum_reduction_for_comms(True)
    if hasattr(network, "encode_text"):  # a call of the network, too
        register_fsdp_forward_method(network, "encode_text")
    for module in network.modules():
        module.register_load_state_dict_pre_hook(_shard_loaded)


def _gathering(part: nn.Module, precision: str) -> MixedPrecisionPolicy:
    own = [m for m in part.modules() if next(m.parameters(recurse=False), None) is not None]
    if precision != "bf16" or not all(isinstance(m, nn.Linear | nn.Conv2d) for m in own):
        return MixedPrecisionPolicy()  # autocast keeps norms and embeddings in float32
    return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)


def _shard_loaded(module: nn.Module, state: dict, prefix: str, *_) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        value = state.get(prefix + name)
        if value is not None and value.shape == parameter.shape:
            state[prefix + name] = placed_like(value, parameter)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor without shards. Collective where it has some."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded as ``like`` is, if it is; no process talks to another."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    if isinstance(tensor, Stored):
        return tensor.read(into=torch.empty_like(like, dtype=tensor.dtype))
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def whole_state(state: Any, keep: bool = True, shards: bool = False) -> Any:
    """A copy in the CPU's memory of nested dicts and lists, without shards. Collective if sharded.

    Copies from a GPU are only begun: `synchronize` ends them. On a process that does not ``keep``
    them, tensors become None. With ``shards``, each copies its own part of what is sharded.
    """

    def copied(name: str, tensor: Tensor) -> Tensor | None:
        tensor = tensor.detach() if shards else whole(tensor.detach())
        if not keep:
            return None
        # Pinned memory is copied to at full speed; torch keeps it for the next checkpoint.
        kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        local(kept).copy_(local(tensor), non_blocking=tensor.is_cuda)
        return kept

    return mapped(state, copied)
