"""Ancestral sampling: DDPM (Ho et al. 2020) and improved DDPM (Nichol & Dhariwal 2021)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pixsigma.diffusion.grids import one_of
from pixsigma.diffusion.prediction import Prediction
from pixsigma.diffusion.samplers.base import GridSampler, Noise, Predict, State
from pixsigma.diffusion.schedule import Level
from pixsigma.errors import InputError
from pixsigma.shapes import Latents

VARIANCES = ("fixed_small", "fixed_large", "learned_range")
"""The posterior variance, the prior one (beta), or between the two as the network says."""


@dataclass(frozen=True, kw_only=True)
class DDPM(GridSampler):
    """Draws from q(x_t-1 | x_t, x0) at the predicted x0; levels that are left out are respaced.

    `learned_range` raises InputError where the prediction has no variance fraction.
    """

    points: ClassVar[str] = "integer"
    order: ClassVar[int] = 1

    spacing: str = "leading"
    variance: str = "fixed_small"
    """One of `VARIANCES`."""
    clip_range: float | None = None
    """Clamp x0 to ± this; meant for pixels, not for latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("variance", self.variance, VARIANCES)

    @property
    def reads_variance(self) -> bool:
        """Whether the variance is the learned one."""
        return self.variance == "learned_range"

    def step(
        self,
        predict: Predict,
        state: State,
        x: Latents,
        levels: Sequence[Level],
        i: int,
        noise: Noise,
    ) -> tuple[Latents, State]:
        """Mean of the posterior (Ho et al., eq. 7), then noise unless the picture is reached."""
        start, end = levels[i], levels[i + 1]
        at = predict(x, start)
        x0 = at.x0 if self.clip_range is None else at.x0.clamp(-self.clip_range, self.clip_range)
        step_alpha = start.alpha / end.alpha
        beta = 1 - step_alpha**2
        mean = (end.alpha * beta * x0 + step_alpha * end.sigma**2 * x) / start.sigma**2
        if end.sigma == 0:
            return mean, state
        small = beta * end.sigma**2 / start.sigma**2
        return mean + self._deviation(at, small, beta) * noise(), state

    def _deviation(self, at: Prediction, small: float, large: float) -> Tensor | float:
        if self.variance != "learned_range":
            return math.sqrt(small if self.variance == "fixed_small" else large)
        if at.variance_fraction is None:
            raise InputError(
                "this sampler reads a learned variance, and the network predicts none: "
                "take the sampler 'ddpm' instead"
            )
        share = (at.variance_fraction.to(at.x0.dtype) + 1) / 2
        # a repeated level has no variance and no logarithm
        logs = (math.log(max(value, 1e-20)) for value in (small, large))
        low, high = logs
        return (0.5 * (share * high + (1 - share) * low)).exp()
