"""Products with weights as a file has them: in 16 bits exactly, in 8 bits with inputs in 8 bits.

Nothing is laid out anew: what is read once must not be copied before its first product.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from pixsigma.models.products import narrow_linear
from pixsigma.models.quantized import saturates

BLOCK_ROWS = 256
"""Of a matrix as computed with, at a time: what the cache of a processor holds."""

FEW_ROWS = 48
"""Up to here a product in 8 bits is quicker with the weights as its left factor."""


def product(x: Tensor, stored: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """`x Wᵀ` in `dtype` for x (…, in) and W (out, in) in any precision, times `scale` (out,).

    On a CPU some rows of W at a time are cast into a buffer and used; 8 bits are multiplied as they
    are where the CPU has instructions for that (VNNI).
    """
    # numbers of up to 127 are scaled before they are fp16, which their products would overflow
    if x.device.type != "cpu":
        weight = stored.to(x.device, non_blocking=True)
        if scale is not None:
            weight = weight.float().mul_(scale.to(x.device)[:, None])
        return linear(x, weight.to(dtype))
    if scale is not None and stored.dtype is torch.int8 and not saturates():
        y = rowwise_product(x.flatten(0, -2).float(), stored).mul_(scale)
        return y.to(dtype).unflatten(0, x.shape[:-1])
    return block_product(x, stored, dtype, scale)


def block_product(
    x: Tensor, stored: Tensor, dtype: torch.dtype, scale: Tensor | None = None
) -> Tensor:
    """The same, cast on the way: exact where `dtype` holds what is stored."""
    if stored.dtype is dtype:
        return narrow_linear(x, stored)
    buffer = torch.empty(min(BLOCK_ROWS, len(stored)), stored.shape[1], dtype=dtype)
    y = x.new_empty(*x.shape[:-1], len(stored))
    for begin in range(0, len(stored), BLOCK_ROWS):
        rows = slice(begin, min(begin + BLOCK_ROWS, len(stored)))
        block = buffer[: rows.stop - begin].copy_(stored[rows])
        if scale is not None:
            block.mul_(scale[rows, None])
        y[..., rows] = narrow_linear(x, block)
    return y


def rowwise_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, in) times int8 (out, in), as float32: rows of x as whole numbers in [-127, 127].

    Each row has its own scale, as T5's tokens differ by magnitudes.
    """
    scale = x.abs().amax(1, keepdim=True).clamp_(min=1e-30).div_(127)
    numbers = (x / scale).round_().to(torch.int8)
    if len(x) > FEW_ROWS:
        return torch._int_mm(numbers, weight.T).float().mul_(scale)
    return torch._int_mm(weight, numbers.T).T.float().mul_(scale)
