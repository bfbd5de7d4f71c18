"""Optimisers and the learning rate over a run."""

import importlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pixsigma.errors import InputError, MissingExtraError
from pixsigma.training.schedule_free import ScheduleFreeAdamW
from pixsigma.training.sections import OptimizerSection

OF_BLOCKS = re.compile(r"(^|\.)(blocks|controlnet|links)\.")
"""Names of weights whose matrices Muon moves."""


def orthogonalized(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to each of (M, rows, columns), by Newton-Schulz.

    The quintic of Jordan et al. (2024), "Muon". In the precision given: bf16, as published, is
    about ten times slower than fp32 on CPUs without bf16 instructions, and 2.5 times quicker on
    those with them.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: steepest descent in the spectral norm (Jordan et al. 2024).

    For weights of two or more dimensions; a convolution counts as (out, in · height · width).
    Weights of one shape go through Newton-Schulz in one batch. The update is scaled by
    sqrt(max(1, rows / columns)), or with `as_adam` by 0.2 sqrt(max(rows, columns)), the size that
    Adam's has (Liu et al. 2025, eq. 4), so that one learning rate serves both. Newton-Schulz is
    done in `precision`, or in that of the weights.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        as_adam: bool = False,
        precision: torch.dtype | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"as_adam": as_adam})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.flatten(1).shape].append(p)
            for (rows, columns), same in by_shape.items():
                wide = 0.2 * max(rows, columns) ** 0.5 if group["as_adam"] else 1.0
                tall = 1.0 if group["as_adam"] else max(1, rows / columns) ** 0.5
                self._update(same, group, group["lr"] * wide * tall)

    def _update(self, same: list[Tensor], group: dict[str, Any], size: float) -> None:
        directions = []
        for p in same:
            assert p.grad is not None
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - group["momentum"])
            directions.append(p.grad.lerp(buffer, group["momentum"]).flatten(1))  # Nesterov
        stacked = torch.stack(directions)
        updates = orthogonalized(stacked.to(self.precision or stacked.dtype))
        for p, update in zip(same, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.view_as(p), alpha=-size)


class Came(torch.optim.Optimizer):
    """Confidence-guided adaptive memory-efficient optimisation (Luo et al. 2023), as PixArt-Σ used.

    Second moments of matrices are kept as one row and one column; the update is weighted by how
    much the momentum has been worth trusting. Betas and eps are the published ones.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999, 0.9999)}
        super().__init__(params, defaults | {"eps": (1e-30, 1e-16), "clip": 1.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad.float(), group)

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2, beta3) = self.state[p], group["betas"]
        factored = grad.ndim >= 2
        square = grad**2 + group["eps"][0]
        update = grad * _inverse_root(_averaged(state, "square", square, beta2, factored))
        update /= (update.square().mean().sqrt() / group["clip"]).clamp(min=1.0)
        momentum = state.setdefault("momentum", torch.zeros_like(update))
        momentum.lerp_(update, 1 - beta1)
        step = momentum
        if factored:
            surprise = (update - momentum) ** 2 + group["eps"][1]
            step = momentum * _inverse_root(_averaged(state, "surprise", surprise, beta3, True))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(step.to(p.dtype), alpha=-group["lr"])


def _averaged(
    state: dict[str, Tensor], name: str, value: Tensor, beta: float, factored: bool
) -> tuple[Tensor, ...]:
    """Running averages of a tensor, or of the means of its rows and of its columns."""
    means = (value.mean(-1), value.mean(-2)) if factored else (value,)
    for i, mean in enumerate(means):
        state.setdefault(f"{name}{i}", torch.zeros_like(mean)).lerp_(mean, 1 - beta)
    return tuple(state[f"{name}{i}"] for i in range(len(means)))


def _inverse_root(averages: tuple[Tensor, ...]) -> Tensor:
    """1 / sqrt of an average, or of the product that rows and columns tell (Adafactor's)."""
    if len(averages) == 1:
        return averages[0].rsqrt()
    rows, columns = averages
    return (rows / rows.mean(-1, keepdim=True)).rsqrt()[..., None] * columns.rsqrt()[..., None, :]


def optimizers(
    model: nn.Module, section: OptimizerSection, precision: torch.dtype | None = None
) -> list[torch.optim.Optimizer]:
    """The optimisers of a recipe; each parameter belongs to exactly one.

    `precision` is that of Muon's products; none is the weights' own.
    """
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rate, decay = section.learning_rate, section.weight_decay
    match section.name:
        case "came":
            return [Came(params.values(), lr=rate, weight_decay=decay)]
        case "adafactor":
            return [torch.optim.Adafactor(params.values(), lr=rate, weight_decay=decay)]
        case "adamw":
            return [adamw(params.values(), rate, decay)]
        case "adamw8bit":
            return [adamw8bit(params.values(), rate, decay)]
        case "schedulefree":
            return [ScheduleFreeAdamW(params.values(), lr=rate, weight_decay=decay)]
    matrices = {
        name: p
        for name, p in params.items()
        if OF_BLOCKS.search(name) and p.ndim == 2 and "table" not in name
    }
    rate_of_matrices = section.matrix_learning_rate
    muon = Muon(matrices.values(), rate_of_matrices, weight_decay=decay, precision=precision)
    return [muon, adamw([p for name, p in params.items() if name not in matrices], rate, decay)]


def adamw(params: Iterable[Tensor], rate: float, decay: float) -> torch.optim.AdamW:
    """AdamW with a shorter memory of squares than usual: runs are short. One kernel a weight."""
    return torch.optim.AdamW(params, lr=rate, betas=(0.9, 0.99), weight_decay=decay, fused=True)


def adamw8bit(params: Iterable[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW with its two moments in 8 bits (Dettmers et al. 2022).

    Raises InputError without a GPU, MissingExtraError without bitsandbytes.
    """
    if not torch.cuda.is_available():
        raise InputError("adamw8bit needs a CUDA GPU, there is none here; adamw runs everywhere")
    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise MissingExtraError("adamw8bit needs bitsandbytes: pip install bitsandbytes") from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        list(params), lr=rate, betas=(0.9, 0.99), weight_decay=decay
    )
    return optimizer


def rate_at(step: int, steps: int, section: OptimizerSection) -> float:
    """Share of the learning rate at a step: warm-up, then what the recipe's schedule says."""
    warmup = min(1.0, (step + 1) / max(1, section.warmup_steps))
    match section.schedule:
        case "constant":
            after = 1.0
        case "cosine":
            length = max(1, steps - section.warmup_steps)
            place = min(1.0, max(0.0, (step - section.warmup_steps) / length))
            after = (1 + math.cos(math.pi * place)) / 2
        case "wsd":
            cooldown_steps = max(1, round(steps * section.cooldown_share))
            after = min(1.0, max(0.0, (steps - step) / cooldown_steps))
    return min(warmup, after)
