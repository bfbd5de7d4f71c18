"""Denoisers known in closed form: for such data every sampler can be checked without a network."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pixsigma.diffusion.prediction import Prediction, from_x0
from pixsigma.diffusion.samplers.base import Noise, Sampler
from pixsigma.diffusion.schedule import Level, NoiseSchedule

MEAN, STD = 0.3, 0.5


def gaussian(x: Tensor, level: Level) -> Prediction:
    """The exact denoiser where every value of the data is N(MEAN, STD²)."""
    total = (level.alpha * STD) ** 2 + level.sigma**2
    x0 = MEAN + level.alpha * STD**2 / total * (x - level.alpha * MEAN)
    exact = from_x0(x0, x, level)
    return Prediction(exact.x0, exact.eps, torch.zeros_like(x))


def gaussian_flow(x: Tensor, start: Level, end: Level) -> Tensor:
    """Where the probability-flow ODE takes `x` exactly, for the same data."""
    before, after = (math.hypot(level.alpha * STD, level.sigma) for level in (start, end))
    return end.alpha * MEAN + after / before * (x - start.alpha * MEAN)


@dataclass(frozen=True)
class Mixture:
    """Every value of the data is N(mean_k, std²) with equal probability for each k."""

    means: tuple[float, ...] = (-0.8, 0.1, 1.1)
    std: float = 0.4

    def eps(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The exact noise prediction."""
        total = (alpha * self.std) ** 2 + sigma**2
        away = torch.stack([x - alpha * mean for mean in self.means])
        share = torch.softmax(-(away**2) / (2 * total), dim=0)
        return sigma / total * (share * away).sum(dim=0)

    def network(self, x: Tensor, t: float, schedule: NoiseSchedule) -> Tensor:
        """The same as a function of the timestep, as a network is."""
        level = schedule.level_between(t)
        return self.eps(x, level.alpha, level.sigma)

    def predict(self, x: Tensor, level: Level) -> Prediction:
        """The same as samplers want it, with a variance fraction between the ends."""
        eps = self.eps(x, level.alpha, level.sigma)
        x0 = (x - level.sigma * eps) / level.alpha
        return Prediction(x0, eps, torch.zeros_like(x))

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the data."""
        mean = sum(self.means) / len(self.means)
        spread = sum((each - mean) ** 2 for each in self.means) / len(self.means)
        return mean, math.sqrt(spread + self.std**2)


def run(
    sampler: Sampler, predict: object, x: Tensor, levels: tuple[Level, ...], noise: Noise
) -> Tensor:
    """All steps of a sampler from `x` at the first level."""
    state = sampler.init(x, levels)
    for i in range(len(levels) - 1):
        x, state = sampler.step(predict, state, x, levels, i, noise)  # type: ignore[arg-type]
    return x


def seeded_noise(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Noise:
    """Fresh noise at every call, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=dtype)
