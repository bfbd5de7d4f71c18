"""Linear layers of the text encoder in 8 bits: weights per output, inputs per token (W8A8)."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from pixsigma.models.quantized import saturates

MIDDLE = 128
"""The 8-bit number that stands for 0."""


class Int8Matrix:
    """`y = x Wᵀ` of which each row of `x` has its own scale: T5's tokens differ by magnitudes.

    No module, so that moving or saving a network around it leaves it where it is.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        """`weight` (out, in) int8 and `scale` (out,) float32 are taken as they are."""
        self.weight, self.scale = weight, scale
        self._packed: tuple[Tensor, Tensor] | None = None

    def product(self, x: Tensor, *, keep: bool = True) -> Tensor:
        """(…, in) to (…, out), in the dtype of `x`; without `keep` nothing stays packed."""
        if x.device.type != "cpu":
            weight = self.weight.to(x.device, torch.float32) * self.scale.to(x.device)[:, None]
            return linear(x, weight.to(x.dtype))
        packed, scale = self.packed()
        self._packed = (packed, scale) if keep else None
        y = rowwise_product(x.flatten(0, -2).float(), packed, scale)
        return y.view(*x.shape[:-1], len(scale)).to(x.dtype)

    def packed(self) -> tuple[Tensor, Tensor]:
        """The weight in the order that the kernel reads, and its scales."""
        if self._packed is not None:
            return self._packed
        weight, scale = self.weight, self.scale
        if saturates():
            weight, scale = (weight / 2).round().to(torch.int8), scale * 2
        return torch.ops.onednn.qlinear_prepack(weight.contiguous(), None), scale


def rowwise_product(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """(N, in) to (N, out), both float32: whole numbers in [-127, 127] times a scale a row."""
    rows = x.abs().amax(1, keepdim=True).clamp_(min=1e-30).div_(127)
    numbers = (x / rows).round_().add_(MIDDLE).to(torch.uint8)
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    y = torch.ops.onednn.qlinear_pointwise(
        numbers, 1.0, MIDDLE, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    found: Tensor = y.mul_(rows)
    return found
