"""The running average of the weights: what is kept of a run."""

import numpy as np
import torch
from torch import Tensor, nn

from pixsigma.training.schedule_free import ScheduleFreeAdamW
from pixsigma.training.sections import RunSection


class Ema:
    """Exponential moving average of what is trained.

    With a warm-up: decay min(d, (1 + n) / (10 + n)) at update n.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().clone() for name, p in moving.items()}

    def decay_now(self) -> float:
        """Of the coming update."""
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        decay = self.decay_now()
        self.num_updates += 1
        live: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        torch._foreach_lerp_(list(self.shadow.values()), live, 1 - decay)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything that a resumed run needs."""
        return {**self.shadow, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """The inverse of `state_dict`."""
        self.num_updates = int(state["num_updates"])
        for name, tensor in self.shadow.items():
            tensor.copy_(torch.as_tensor(state[name]))


class PowerEma(Ema):
    """Average with weights (step)^gamma, as wide at every length of a run (Karras et al. 2024).

    `std` is the deviation of the averaged steps as a share of the run ("EDM2", eq. 121 to 126).
    """

    def __init__(self, model: nn.Module, std: float) -> None:
        super().__init__(model, decay=0.0)
        self.gamma = gamma_of(std)

    def decay_now(self) -> float:
        """(1 - 1/n)^(gamma + 1): 0 at the first update."""
        return float((1 - 1 / (1 + self.num_updates)) ** (self.gamma + 1))


def gamma_of(std: float) -> float:
    """The exponent whose profile has this deviation: (γ+1) / ((γ+2)² (γ+3)) = std²."""
    goal = std**-2
    roots = np.roots([1.0, 7.0, 16.0 - goal, 12.0 - goal])
    return float(roots.real.max())


class FreeAverage(Ema):
    """The average that a schedule-free optimiser makes itself."""

    def __init__(self, model: nn.Module, optimizer: ScheduleFreeAdamW) -> None:
        super().__init__(model, decay=0.0)
        self.optimizer = optimizer

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Read it from the optimiser's state."""
        self.num_updates += 1
        live = [p for p in model.parameters() if p.requires_grad]
        for kept, p in zip(self.shadow.values(), live, strict=True):
            kept.copy_(self.optimizer.average(p))


def average_of(model: nn.Module, run: RunSection, moving: list[torch.optim.Optimizer]) -> Ema:
    """The average that a recipe asks for."""
    for optimizer in moving:
        if isinstance(optimizer, ScheduleFreeAdamW):
            return FreeAverage(model, optimizer)
    if run.ema_std is not None:
        return PowerEma(model, run.ema_std)
    return Ema(model, run.ema_decay)
