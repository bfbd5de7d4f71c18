"""AdamW without a schedule (Defazio et al. 2024, "The Road Less Scheduled")."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """Gradients at y, steps of z, and x, the average of z that is kept.

    y = (1 - beta) z + beta x is what the parameters hold; x is found from y and z. Averages weigh
    each z by the square of its learning rate, so that warm-up counts for little.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"num_steps": 0, "weight_sum": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            group["num_steps"] += 1
            weight = group["lr"] ** 2
            group["weight_sum"] += weight
            share = weight / group["weight_sum"] if weight else 0.0
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group, share)

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any], share: float) -> None:
        beta, beta2 = group["betas"]
        state = self.state[p]
        if not state:
            state["z"], state["square"] = p.clone(), torch.zeros_like(p)
        z, square = state["z"], state["square"]
        square.lerp_(grad * grad, 1 - beta2)
        scale = (square / (1 - beta2 ** group["num_steps"])).sqrt_().add_(group["eps"])
        x = self.average(p)
        step = (grad / scale).add_(p, alpha=group["weight_decay"])
        z.sub_(step, alpha=group["lr"])
        x.lerp_(z, share)
        p.copy_(z.lerp(x, beta))

    def average(self, p: Tensor) -> Tensor:
        """x of a parameter: y / beta + (1 - 1 / beta) z."""
        state = self.state.get(p)
        if not state:
            return p.detach().clone()
        beta = self.param_groups[0]["betas"][0]
        return p.detach().lerp(state["z"], 1 - 1 / beta)
