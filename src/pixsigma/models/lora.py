"""What an adapter adds to a weight: LoRA and its kin, for linear layers and convolutions.

R is the rank, `out` and `in` are the axes of the weight, k the side of a convolution's kernel.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

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


@dataclass(frozen=True, kw_only=True)
class Full:
    """The whole difference of a weight, as ComfyUI's `diff`."""

    difference: Tensor
    """(out, in) or (out, in, k, k)."""

    @property
    def rank(self) -> None:
        """None: nothing scales it."""
        return None

    def product(self) -> Tensor:
        """The difference itself."""
        return self.difference


@dataclass(frozen=True, kw_only=True)
class OFT:
    """A rotation of what a linear layer reads, block by block (Qiu et al. 2023; peft's `oft_R`).

    A block is the Cayley transform (I - Q)⁻¹ (I + Q) of a skew-symmetric matrix Q.
    """

    vectors: Tensor
    """(blocks, s(s-1)/2): above the diagonal of each Q; one row may serve all blocks."""
    num_terms: int | None = 5
    """Of the series I + 2 (Q + Q² + …) that peft takes for it; None inverts the matrix."""

    @property
    def rank(self) -> None:
        """None: nothing scales it."""
        return None

    @property
    def side(self) -> int:
        """s, of a block."""
        return (1 + math.isqrt(1 + 8 * self.vectors.shape[1])) // 2

    def rotations(self) -> Tensor:
        """(blocks, s, s); orthogonal but for the end of the series."""
        side = self.side
        skew = self.vectors.new_zeros(len(self.vectors), side, side)
        rows, columns = torch.triu_indices(side, side, 1, device=skew.device)
        skew[:, rows, columns] = self.vectors
        skew = skew - skew.mT
        one = torch.eye(side, device=skew.device, dtype=skew.dtype).expand_as(skew)
        if self.num_terms is None:
            return torch.linalg.solve(one + skew, one - skew, left=False)
        # as peft counts: three terms are four, and the last of more than two is halved
        num = 4 if self.num_terms == 3 else self.num_terms
        total, power = one.clone(), one
        for i in range(1, num):
            power = power @ skew
            total = total + power * (1 if 2 < i + 1 == num else 2)
        return total

    def turned(self, base: Tensor) -> Tensor:
        """(out, in) with its input rotated; raises ValueError where the blocks do not fill `in`."""
        num, width = len(self.vectors), base.shape[-1]
        if base.ndim != 2 or width % self.side or num not in (1, width // self.side):
            raise ValueError(f"{num} blocks of {self.side} do not turn {width}")
        parts = base.unflatten(1, (-1, self.side)).transpose(0, 1)  # (blocks, out, s)
        return (parts @ self.rotations().mT).transpose(0, 1).flatten(1)


Factors: TypeAlias = LoRA | LoHa | LoKr | Full | OFT


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
        factors = moved(self.factors, base.device)
        if isinstance(factors, OFT):
            return factors.turned(base) - base
        change = self.scale * factors.product().reshape(base.shape)
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
    there: dict[str, Any] = {
        name: value.to(device, torch.float32) if isinstance(value, Tensor) else value
        for name, value in given.items()
    }
    return type(factors)(**there)


def product_shape(factors: Factors, base: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what changes a weight of shape `base`, nothing computed.

    Raises TypeError, ValueError, IndexError or RuntimeError where the factors do not fit together.
    """
    there = torch.device("meta")
    factors = moved(factors, there)
    if isinstance(factors, OFT):
        return tuple(factors.turned(torch.empty(base, device=there)).shape)
    return tuple(factors.product().shape)
