"""What a drawing knows beforehand: latents to begin from, and places that are not to change."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixsigma.diffusion.prediction import Prediction, from_x0
from pixsigma.diffusion.samplers.base import Predict, Sampler
from pixsigma.diffusion.schedule import Level
from pixsigma.shapes import Latents


@dataclass(frozen=True)
class Known:
    """A picture's clean latents, and where they stay.

    The kept places are not copied over the latents after each step, as RePaint (Lugmayr et al.
    2022, eq. 8) and diffusers do: samplers that look back (UniPC, SA-Solver, singlestep) would
    forget the copy. Instead the denoiser answers with the truth there. A solver of the ODE then
    carries the kept latents as alpha x0 + sigma eps through every level, the same as copying; a
    solver of the SDE draws them from q(x_t | x0).
    """

    source: Latents
    """(1, C, H, W)"""
    mask: Tensor | None = None
    """(1, 1, H, W): 1 is drawn, 0 is kept. None draws everything."""
    from_noise: bool = False
    """What is drawn begins as noise alone, as without a picture (strength 1)."""

    def start(self, sampler: Sampler, noise: Latents, levels: Sequence[Level]) -> Latents:
        """The first `x`: the source at the first level's noise; untouched where no step follows."""
        if len(levels) == 1:
            return self.source.expand_as(noise)
        noised = levels[0].add_noise(self.source, noise)
        if not self.from_noise:
            return noised
        free = sampler.start(noise, levels)
        return free if self.mask is None else torch.where(self.mask > 0, free, noised)

    def around(self, predict: Predict) -> Predict:
        """The denoiser that knows the kept places."""
        if self.mask is None:
            return predict
        drawn = self.mask > 0

        def knowing(x: Latents, level: Level) -> Prediction:
            at, truth = predict(x, level), from_x0(self.source, x, level)
            return Prediction(
                torch.where(drawn, at.x0, truth.x0),
                torch.where(drawn, at.eps, truth.eps),
                at.variance_fraction,
            )

        return knowing


def shortened(levels: Sequence[Level], strength: float) -> tuple[Level, ...]:
    """The last levels of a grid: the share `strength` of its steps, at least one above 0."""
    steps = len(levels) - 1
    kept = min(steps, max(1, round(steps * strength))) if strength > 0 else 0
    return tuple(levels[steps - kept :])
