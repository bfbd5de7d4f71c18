"""The noise schedule: one owner of the noise for training and for sampling."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pixsigma.config import ScheduleConfig
from pixsigma.errors import UnknownNameError
from pixsigma.shapes import Latents

BETA_SCHEDULES = ("linear", "scaled_linear")
"""Noise schedules: PixArt's, and that of Stable Diffusion."""


@dataclass(frozen=True)
class Level:
    """A noise level on the variance-preserving path: x = alpha x0 + sigma eps."""

    timestep: float
    """What the network is told, in [0, 999], fractions allowed."""
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha: the noise level of Karras et al. (2022) and of k-diffusion."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma): half the log of signal to noise (Lu et al. 2022)."""
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)

    @staticmethod
    def from_ratio(timestep: float, ratio: float) -> "Level":
        """The level with sigma / alpha = `ratio` and alpha² + sigma² = 1."""
        alpha = 1 / math.sqrt(1 + ratio * ratio)
        return Level(timestep, alpha, ratio * alpha)

    def add_noise(self, x0: Latents, eps: Latents) -> Latents:
        """Latents at this level: alpha x0 + sigma eps."""
        return self.alpha * x0 + self.sigma * eps


class NoiseSchedule:
    """Variance-preserving path q(x_t | x0) = N(alpha_t x0, sigma_t²) (Ho et al. 2020, eq. 4)."""

    def __init__(self, config: ScheduleConfig | None = None) -> None:
        self.config = config or ScheduleConfig()

    @cached_property
    def betas(self) -> Tensor:
        """(T,) float64."""
        c = self.config
        if c.beta_schedule == "linear":
            return torch.linspace(
                c.beta_start, c.beta_end, c.num_train_timesteps, dtype=torch.float64
            )
        if c.beta_schedule == "scaled_linear":
            ends = c.beta_start**0.5, c.beta_end**0.5
            return torch.linspace(*ends, c.num_train_timesteps, dtype=torch.float64) ** 2
        raise UnknownNameError(
            f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}, got {c.beta_schedule!r}"
        )

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float64: alpha_t²."""
        return torch.cumprod(1 - self.betas, dim=0)

    @cached_property
    def ratios(self) -> Tensor:
        """(T,) float64: sigma_t / alpha_t, growing with t."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def level(self, t: int) -> Level:
        """The level at a training timestep."""
        a = float(self.alphas_cumprod[t])
        return Level(float(t), math.sqrt(a), math.sqrt(1 - a))

    def level_between(self, t: float) -> Level:
        """The level at a fractional timestep, log alpha linear in between (Lu et al. 2022)."""
        logs = self.alphas_cumprod.log().numpy() / 2
        log_alpha = float(np.interp(t, np.arange(len(logs)), logs))
        return Level(t, math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha)))

    def ratio_at(self, t: float) -> float:
        """sigma / alpha at a fractional timestep, linear in between as in diffusers."""
        return float(np.interp(t, np.arange(len(self.ratios)), self.ratios.numpy()))

    def timestep_of(self, ratio: float) -> float:
        """The fractional timestep of a sigma / alpha, linear in its log, clipped to the ends."""
        logs = self.ratios.log().numpy()
        return float(np.interp(math.log(max(ratio, 1e-10)), logs, np.arange(len(logs))))

    def add_noise(self, x0: Latents, eps: Latents, t: Tensor) -> Latents:
        """x_t = alpha_t x0 + sigma_t eps for training timesteps t (B,), int64."""
        alpha = per_row(self.alphas_cumprod.sqrt(), t, x0)
        sigma = per_row((1 - self.alphas_cumprod).sqrt(), t, x0)
        return alpha * x0 + sigma * eps


def per_row(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries `t` (B,) of a float64 table as (B, 1, ...) with the dtype and device of `like`."""
    # dtype before device: some accelerators hold no float64
    rows = table.to(like.dtype).to(like.device)[t.to(like.device)]
    return rows.view(-1, *[1] * (like.ndim - 1))
