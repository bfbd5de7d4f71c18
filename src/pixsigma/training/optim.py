"""Optimisers and the learning rate over a run."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pixsigma.training.recipe import OptimizerSection


def orthogonalized(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to each of (M, rows, columns), by Newton-Schulz.

    The quintic of Jordan et al. (2024), "Muon". In the precision given: bf16, as published, is
    about ten times slower than fp32 on CPUs without bf16 instructions.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: steepest descent in the spectral norm (Jordan et al. 2024).

    For weights of two or more dimensions; a convolution counts as (out, in · height · width).
    Weights of one shape go through Newton-Schulz in one batch. The update is scaled by
    sqrt(max(1, rows / columns)), or with `as_adam` by 0.2 sqrt(max(rows, columns)), the size that
    Adam's has (Liu et al. 2025, eq. 4), so that one learning rate serves both.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        as_adam: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"as_adam": as_adam})

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
        updates = orthogonalized(torch.stack(directions))
        for p, update in zip(same, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.view_as(p), alpha=-size)


def optimizers(model: nn.Module, section: OptimizerSection) -> list[torch.optim.Optimizer]:
    """The optimisers of a recipe; each parameter belongs to exactly one."""
    params = dict(model.named_parameters())
    matrices = {
        name: p
        for name, p in params.items()
        if section.name == "muon"
        and ".blocks." in f".{name}"
        and p.ndim == 2
        and "table" not in name
    }
    rest = [p for name, p in params.items() if name not in matrices]
    adamw = torch.optim.AdamW(
        rest, lr=section.learning_rate, betas=(0.9, 0.99), weight_decay=section.weight_decay
    )
    if not matrices:
        return [adamw]
    muon = Muon(
        matrices.values(), lr=section.matrix_learning_rate, weight_decay=section.weight_decay
    )
    return [muon, adamw]


def rate_at(step: int, steps: int, section: OptimizerSection) -> float:
    """Share of the learning rate at a step: warm-up, stable, then linear to zero."""
    warmup = min(1.0, (step + 1) / max(1, section.warmup_steps))
    cooldown_steps = max(1, round(steps * section.cooldown_share))
    return min(warmup, 1.0, max(0.0, (steps - step) / cooldown_steps))
