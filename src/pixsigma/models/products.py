"""Linear layers by whichever of two exact libraries is the quicker on this CPU.

torch multiplies float32 by MKL, which is a fifth slower than oneDNN on AMD's processors with
AVX-512 (and the quicker of the two on those with AVX2). The choice is by what the processor is
and not by a measurement, so that a drawing is the same in every run.
"""

from functools import cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, pad

Post: TypeAlias = Literal["none", "gelu"]
"""What follows a product; the GELU is that of tanh."""

BFLOAT16 = ("avx512_bf16", "amx_tile")
"""Instructions for bf16 products, as torch calls them."""


class Linear(nn.Linear):
    """`nn.Linear`; without gradients by oneDNN where that is quicker, the GELU on the way."""

    def forward(self, x: Tensor, post: Post = "none") -> Tensor:
        """(…, in) to (…, out)."""
        if self.by_onednn(x):
            return onednn_linear(x, self.weight, self.bias, post)
        y = super().forward(x)
        if post == "none":
            return y
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return gelu(y, approximate="tanh")
        return torch.ops.aten.gelu_(y, approximate="tanh")

    def by_onednn(self, x: Tensor) -> bool:
        """Whether this product is one that oneDNN takes, and takes less time for."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
            return False
        # adapters and torchao put other kinds of tensors here, and autocast another precision
        plain = type(self.weight) in (nn.Parameter, Tensor) and self.weight.dtype is x.dtype
        return (
            plain
            and x.dtype is torch.float32
            and not torch.is_autocast_enabled("cpu")
            and onednn_is_quicker()
        )


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, post: Post = "none") -> Tensor:
    """`x Wᵀ + b` by oneDNN, in the precision of x and W; it knows no gradients.

    oneDNN keeps some hundred kilobytes for every number of rows that it has met, so a server whose
    batches are never alike would grow and grow: rows are rounded up, the last of them zeros.
    """
    algorithm = "tanh" if post == "gelu" else ""
    rows = x[..., 0].numel()
    beyond = rounded(rows) - rows
    given = pad(x.reshape(rows, -1), (0, 0, 0, beyond)) if beyond else x
    y = torch.ops.mkldnn._linear_pointwise(given, weight, bias, post, [], algorithm)
    return y[:rows].view(*x.shape[:-1], -1) if beyond else y


def rounded(rows: int) -> int:
    """The next of few numbers: eight to an octave, from 2048 on the multiples of 128."""
    return -(-rows // _between(rows)) * _between(rows)


def strip(most: int) -> int:
    """The most rows up to `most` (at least one) that are not rounded up."""
    return max(1, most // _between(most) * _between(most))


def _between(rows: int) -> int:
    """How far the numbers that are left lie from each other there."""
    return min(128, 1 << max(0, rows.bit_length() - 4))


def narrow_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`linear` without bias, by oneDNN in float32: half as long as MKL for some tens of rows."""
    if x.dtype is torch.float32 and has_onednn_linear():
        return onednn_linear(x, weight, None)
    return linear(x, weight)


@cache
def onednn_is_quicker() -> bool:
    """Whether oneDNN multiplies large float32 matrices quicker than MKL."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and has_onednn_linear()


@cache
def has_onednn_linear() -> bool:
    """Whether this build of torch has oneDNN's product of plain tensors, and it is right."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    try:
        found = onednn_linear(x, weight, None)
    except (AttributeError, RuntimeError):
        return False
    return bool(found.eq(3).all())


def multiplies_in_bfloat16(layer: nn.Module) -> bool:
    """Whether a layer's product is in bf16 whatever it is given, as some quantised ones are."""
    return bool(getattr(layer, "in_bfloat16", False))


def is_coarse(layer: nn.Module) -> bool:
    """Whether a layer's answers are so coarse, as all quantised ones' but the finest are."""
    return bool(getattr(layer, "coarse", False))


@cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether this is a CPU with instructions for bf16 products, which are very slow without."""
    return device.type == "cpu" and any(map(cpu_has, BFLOAT16)) and has_onednn_linear()


@cache
def cpu_has(instructions: str) -> bool:
    """Whether this CPU has them, by torch's name; false where this torch does not know them."""
    return bool(getattr(torch.cpu, f"_is_{instructions}_supported", lambda: False)())
