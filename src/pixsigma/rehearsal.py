"""What a network would compute and hold, found by running it without numbers (device `meta`)."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run."""

    flops: float
    """Multiplications and additions of products, convolutions and attention."""
    attention: float = 0.0
    """Of these, those of attention, for which a machine has a rate of its own."""
    num_bytes: int
    """The most that activations take at once; weights and the scratch of kernels come on top."""

    def times(self, share: float) -> "Cost":
        """Of so many runs, one after the other."""
        return replace(self, flops=self.flops * share, attention=self.attention * share)

    def beside(self, num_bytes: float) -> "Cost":
        """With other memory held meanwhile."""
        return replace(self, num_bytes=int(self.num_bytes + num_bytes))

    def in_precision(self, dtype: torch.dtype) -> "Cost":
        """Of a rehearsal in float32, in another precision."""
        return replace(self, num_bytes=self.num_bytes * dtype.itemsize // 4)


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(a.untyped_storage()) for a in tree_leaves((args, kwargs)) if is_tensor(a)}
        for leaf in tree_leaves(out):
            if is_tensor(leaf):
                self._meet(leaf.untyped_storage(), given)
        return out

    def _meet(self, storage: Any, given: set[int]) -> None:
        key = id(storage)
        if key in self._known or key in given:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._leave, key, storage.nbytes())

    def _leave(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.now -= num_bytes


class _Attention(TorchFunctionMode):
    """Attention as the kernels do it: without its N × N weights."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        self.flops += 2.0 * q.numel() * k.shape[-2] * (1 + v.shape[-1] / q.shape[-1])
        return q.new_empty(*q.shape[:-1], v.shape[-1])


def rehearse(run: Callable[[], Any]) -> Cost:
    """The cost of `run`, whose tensors and networks are on the device `meta`."""
    live, attention = _Live(), _Attention()
    with torch.no_grad(), FlopCounterMode(display=False) as flops, live, attention:
        run()
    total = flops.get_total_flops() + attention.flops
    return Cost(flops=total, attention=attention.flops, num_bytes=live.most)


def is_tensor(leaf: Any) -> bool:
    """Whether it has a storage."""
    return isinstance(leaf, Tensor)
