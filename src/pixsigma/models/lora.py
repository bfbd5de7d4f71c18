"""What an adapter adds to a weight: LoRA and its kin, for linear layers and convolutions.

R is the rank, `out` and `in` are the axes of the weight, k the side of a convolution's kernel.
"""

from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Two thin matrices (Hu et al. 2021, "LoRA"), with a core between them as in LyCORIS' LoCon."""

    down: Tensor
    """(R, in) or (R, in, k, k)."""
    up: Tensor
    """(out, R) or (out, R, 1, 1)."""
    mid: Tensor | None = None
    """(R, R, k, k); `down` is 1 × 1 then."""

    @property
    def rank(self) -> int:
        """R."""
        return self.down.shape[0]

    def product(self) -> Tensor:
        """up · down: (out, in·k·k), or (out, in, k, k) with a core."""
        up, down = self.up.flatten(1), self.down.flatten(1)
        return up @ down if self.mid is None else tucker(self.mid, up.T, down)


@dataclass(frozen=True, kw_only=True)
class LoHa:
    """Two low-rank products, multiplied element by element (Hyeon-Woo et al. 2021, "FedPara")."""

    w1_a: Tensor
    """(out, R); with cores (R, out)."""
    w1_b: Tensor
    """(R, in·k·k); with cores (R, in)."""
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    """(R, R, k, k)."""
    t2: Tensor | None = None

    @property
    def rank(self) -> int:
        """R of each product; their element-wise product has up to R²."""
        return self.w1_b.shape[0]

    def product(self) -> Tensor:
        """(w1_a · w1_b) ∘ (w2_a · w2_b): (out, in·k·k), or (out, in, k, k) with cores."""
        return low_rank(self.w1_a, self.w1_b, self.t1) * low_rank(self.w2_a, self.w2_b, self.t2)


@dataclass(frozen=True, kw_only=True)
class LoKr:
    """A Kronecker product of a small matrix and a larger one (Yeh et al. 2023, "LyCORIS").

    Each is given whole, or as two thin matrices.
    """

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    """(out', in') or (out', in', k, k)."""
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    """(R, R, k, k)."""

    @property
    def rank(self) -> int | None:
        """R; None where both are whole."""
        thin = self.w1_b if self.w1_b is not None else self.w2_b
        return None if thin is None else thin.shape[0]

    def product(self) -> Tensor:
        """w1 ⊗ w2: (out, in·k·k), or (out, in, k, k)."""
        small = low_rank(self.w1_a, self.w1_b) if self.w1 is None else self.w1
        large = low_rank(self.w2_a, self.w2_b, self.t2) if self.w2 is None else self.w2
        return torch.kron(small.reshape(*small.shape, *[1] * (large.ndim - 2)), large.contiguous())


Factors: TypeAlias = LoRA | LoHa | LoKr


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one adapter does to one weight, or to some rows of one."""

    factors: Factors
    scale: float = 1.0
    """alpha / R; alpha / √R for rsLoRA (Kalajdzievski 2023)."""
    magnitude: Tensor | None = None
    """(out, 1, …) or (1, in, …): the lengths that rows or columns get (Liu et al. 2024, "DoRA")."""

    def delta(self, base: Tensor) -> Tensor:
        """What is added to `base` at full strength: its shape and device, float32."""
        base = base.float()
        change = self.scale * moved(self.factors, base.device).product().reshape(base.shape)
        if self.magnitude is None:
            return change
        merged = base + change
        kept = 0 if self.magnitude.shape[0] > 1 else 1
        axes = [axis for axis in range(base.ndim) if axis != kept]
        length = torch.linalg.vector_norm(merged, dim=axes, keepdim=True)
        return merged * (self.magnitude.to(base.device, torch.float32) / length) - base


def low_rank(a: Tensor | None, b: Tensor | None, core: Tensor | None = None) -> Tensor:
    """a · b, or `tucker` where there is a core; raises ValueError where a factor is missing."""
    if a is None or b is None:
        raise ValueError("one of two factors is missing")
    return a @ b if core is None else tucker(core, a, b)


def tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """core (R, R, k, k), a (R, out), b (R, in) to (out, in, k, k)."""
    return torch.einsum("ijkl,io,jn->onkl", core, a, b)


def moved(factors: Factors, device: torch.device) -> Factors:
    """The same in float32 on `device`."""
    given = {f.name: getattr(factors, f.name) for f in fields(factors)}
    there = {name: t.to(device, torch.float32) for name, t in given.items() if t is not None}
    return type(factors)(**there)


def product_shape(factors: Factors) -> tuple[int, ...]:
    """The shape of the product, nothing computed.

    Raises TypeError, ValueError, IndexError or RuntimeError where the factors do not fit together.
    """
    return tuple(moved(factors, torch.device("meta")).product().shape)
