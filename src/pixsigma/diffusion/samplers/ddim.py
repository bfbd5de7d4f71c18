"""DDIM (Song et al. 2021, "Denoising Diffusion Implicit Models")."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pixsigma.diffusion.samplers.base import GridSampler, Noise, Predict, State
from pixsigma.diffusion.schedule import Level
from pixsigma.errors import InputError
from pixsigma.shapes import Latents


@dataclass(frozen=True, kw_only=True)
class DDIM(GridSampler):
    """Equation 12 of the paper on any grid.

    The same numbers as diffusers where its grid is even: `leading`, or `trailing` with a number of
    steps that divides 1000. Elsewhere diffusers steps to levels that are not the next of its grid.
    """

    points: ClassVar[str] = "integer"
    order: ClassVar[int] = 1

    spacing: str = "leading"
    eta: float = 0.0
    """0 follows the ODE; 1 has the noise of DDPM."""
    clip_range: float | None = None
    """Clamp x0 to ± this; meant for pixels, not for latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta must be between 0 and 1, got {self.eta}")

    def step(
        self,
        predict: Predict,
        state: State,
        x: Latents,
        levels: Sequence[Level],
        i: int,
        noise: Noise,
    ) -> tuple[Latents, State]:
        """Go back to x0 and forward again to the next level."""
        start, end = levels[i], levels[i + 1]
        at = predict(x, start)
        x0 = at.x0 if self.clip_range is None else at.x0.clamp(-self.clip_range, self.clip_range)
        fresh = self.eta * end.sigma / start.sigma * _lost(start, end)
        kept = math.sqrt(max(0.0, end.sigma**2 - fresh**2))
        moved = end.alpha * x0 + kept * at.eps
        return (moved + fresh * noise() if self.eta else moved), state


def _lost(start: Level, end: Level) -> float:
    """Standard deviation of the forward step from `end` to `start`."""
    return math.sqrt(max(0.0, 1 - (start.alpha / end.alpha) ** 2))
