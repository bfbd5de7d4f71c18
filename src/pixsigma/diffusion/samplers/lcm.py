"""Latent consistency sampling (Luo et al. 2023, arXiv 2310.04378), for distilled networks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pixsigma.diffusion.samplers.base import GridSampler, Noise, Predict, State
from pixsigma.diffusion.schedule import Level
from pixsigma.shapes import Latents

_SIGMA_DATA = 0.5


@dataclass(frozen=True, kw_only=True)
class LCM(GridSampler):
    """Jump to the picture, noise it anew to the next level, and again.

    Guidance is distilled into the network: sample at guidance scale 1.
    """

    points: ClassVar[str] = "integer"
    order: ClassVar[int] = 1

    spacing: str = "lcm"
    timestep_scaling: float = 10.0
    """How fast the boundary condition fades with the timestep."""
    clip_range: float | None = None
    """Clamp x0 to ± this; meant for pixels, not for latents."""

    def step(
        self,
        predict: Predict,
        state: State,
        x: Latents,
        levels: Sequence[Level],
        i: int,
        noise: Noise,
    ) -> tuple[Latents, State]:
        """The consistency function c_skip x + c_out x0 (Song et al. 2023), then fresh noise."""
        start, end = levels[i], levels[i + 1]
        x0 = predict(x, start).x0
        if self.clip_range is not None:
            x0 = x0.clamp(-self.clip_range, self.clip_range)
        scaled = start.timestep * self.timestep_scaling
        total = scaled**2 + _SIGMA_DATA**2
        clean = _SIGMA_DATA**2 / total * x + scaled / math.sqrt(total) * x0
        last = i == len(levels) - 2
        return (clean if last else end.add_noise(clean, noise())), state
