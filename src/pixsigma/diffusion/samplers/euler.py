"""Euler and Euler ancestral, after Karras et al. 2022 and k-diffusion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pixsigma.diffusion.samplers.base import GridSampler, Noise, Predict, State
from pixsigma.diffusion.schedule import Level
from pixsigma.shapes import Latents


@dataclass(frozen=True, kw_only=True)
class RatioSampler(GridSampler):
    """The part shared by samplers whose time is sigma / alpha and whose first x is sigma noise."""

    points: ClassVar[str] = "real"

    def start(self, noise: Latents, levels: Sequence[Level]) -> Latents:
        """Noise of the first level; the spacing `leading` starts from unit noise, as published."""
        return noise if self.spacing == "leading" else levels[0].sigma * noise


@dataclass(frozen=True, kw_only=True)
class Euler(RatioSampler):
    """Euler's method in sigma / alpha (algorithm 1 without churn).

    On the variance-preserving path this is DDIM with eta 0: only the grid differs.
    """

    order: ClassVar[int] = 1

    def step(
        self,
        predict: Predict,
        state: State,
        x: Latents,
        levels: Sequence[Level],
        i: int,
        noise: Noise,
    ) -> tuple[Latents, State]:
        """Keep x0 and eps, change their shares."""
        at = predict(x, levels[i])
        return levels[i + 1].add_noise(at.x0, at.eps), state


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(RatioSampler):
    """Euler down past the next level, then fresh noise up to it (k-diffusion)."""

    order: ClassVar[int] = 1

    def step(
        self,
        predict: Predict,
        state: State,
        x: Latents,
        levels: Sequence[Level],
        i: int,
        noise: Noise,
    ) -> tuple[Latents, State]:
        """Split the next level's noise into an old and a fresh part, as DDPM does."""
        start, end = levels[i], levels[i + 1]
        at = predict(x, start)
        lost = max(0.0, start.ratio**2 - end.ratio**2)
        up = end.ratio * math.sqrt(lost) / start.ratio
        down = math.sqrt(max(0.0, end.ratio**2 - up**2))
        return end.alpha * (at.x0 + down * at.eps + up * noise()), state
