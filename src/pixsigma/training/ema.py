"""The running average of the weights: what is kept of a run."""

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average with a warm-up: decay min(d, (1 + n) / (10 + n)) at update n."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        names, live = zip(*model.named_parameters(), strict=True)
        torch._foreach_lerp_([self.shadow[n] for n in names], list(live), 1 - decay)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything that a resumed run needs."""
        return {**self.shadow, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """The inverse of `state_dict`."""
        self.num_updates = int(state["num_updates"])
        for name, tensor in self.shadow.items():
            tensor.copy_(torch.as_tensor(state[name]))
