"""What a network costs: arithmetic, time and memory."""

import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from wfimagevae.engine.device import synchronize


def count_macs(function: Callable[..., object], *inputs: Any) -> int:
    """Multiply-accumulates of a call: convolutions, matrix products and attention.

    Networks called inside compute nothing but shapes, in a moment and without memory.
    """
    # PyTorch's counter takes some kernels of attention for nothing; as products it counts all.
    fake, counter = FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False)
    eager, products = torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH)
    with fake, torch.no_grad(), eager, products, counter:
        function(*inputs)
    return counter.get_total_flops() // 2


def size_of(tree: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


class HeldBytes(TorchDispatchMode):
    """Counts the memory of tensors that appear in its context, until they are freed.

    Attributes:
        now: Bytes of those that are still alive, behind the context too: after a forward pass, what
            its graph keeps.
        most: The most that they were, at once.
        before: Bytes of tensors that were there before and were used.

    Tensors that were there before do not count, nor views of them. On shapes alone
    (`FakeTensorMode`) nothing is allocated.
    """

    def __init__(self):
        super().__init__()
        self.now = self.most = self.before = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        self._meet((args, kwargs), is_new=False)
        result = function(*args, **kwargs or {})
        self._meet(result, is_new=True)
        self.most = max(self.most, self.now)
        return result

    def _meet(self, tree: Any, is_new: bool) -> None:
        # Until it is freed: another storage may have its address then.
        for storage in _storages(tree):
            key, size = storage._cdata, storage.nbytes() if is_new else 0
            if key not in self._known:
                self._known.add(key)
                self.now += size
                self.before += 0 if is_new else storage.nbytes()
                weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    # Forward mode's zero tangents have no memory.
    return [tensor.untyped_storage() for tensor in tensors if not tensor._is_zerotensor()]


def seconds_per_call(
    function: Callable[[], Tensor], device: torch.device, min_seconds: float = 3.0, warm_up: int = 2
) -> float:
    """Median time of a call, with the device synchronised around each.

    Repeats until ``min_seconds`` have passed, and at least three times, after ``warm_up`` calls.
    """
    for _ in range(warm_up):
        function()
    times: list[float] = []
    while len(times) < 3 or sum(times) < min_seconds:
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
