"""Heun's method in sigma / alpha (Karras et al. 2022, algorithm 1 without churn)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pixsigma.diffusion.samplers.base import Noise, Predict, State
from pixsigma.diffusion.samplers.euler import RatioSampler
from pixsigma.diffusion.schedule import Level
from pixsigma.shapes import Latents


@dataclass(frozen=True, kw_only=True)
class Heun(RatioSampler):
    """Euler, corrected by the slope at its end: two evaluations a step, one in the last."""

    order: ClassVar[int] = 2

    def step(
        self,
        predict: Predict,
        state: State,
        x: Latents,
        levels: Sequence[Level],
        i: int,
        noise: Noise,
    ) -> tuple[Latents, State]:
        """The slope of x / alpha over sigma / alpha is eps: average it over the step."""
        start, end = levels[i], levels[i + 1]
        at = predict(x, start)
        guess = end.add_noise(at.x0, at.eps)
        if end.sigma == 0:
            return guess, state
        slope = (at.eps + predict(guess, end).eps) / 2
        return end.alpha * (x / start.alpha + (end.ratio - start.ratio) * slope), state
