"""Grids: which noise levels a sampler visits, noisiest first, the last where the picture is.

Published samplers differ in where their points lie, so a spacing is read in one of three ways:

    "inner"    S integer points of S + 1, the cleanest left out (DPM-Solver, SA-Solver, UniPC)
    "integer"  S integer points, both ends taken (DDPM, DDIM)
    "real"     S points, both ends taken, fractions kept (Euler, Heun)
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pixsigma.config import ScheduleConfig
from pixsigma.diffusion.schedule import Level, NoiseSchedule
from pixsigma.errors import InputError, UnknownNameError

SPACINGS = (
    "linspace",
    "leading",
    "trailing",
    "karras",
    "exponential",
    "lu",
    "ays",
    "iddpm",
    "authors",
    "lcm",
    "lcm-even",
)
"""Names that `spaced` understands."""

FINALS = ("zero", "sigma_min")
"""Where a grid ends: without noise, or at the cleanest level of training."""

LCM_STEPS = 50
"""Steps of the teacher of a consistency model: it learnt every twentieth timestep."""

AYS_RATIOS = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113)
"""Ten noise levels for SDXL, from Sabour et al. 2024, "Align Your Steps", and its project page."""


def one_of(what: str, value: object, known: Sequence[object]) -> None:
    """Raise UnknownNameError unless `value` is one of `known`."""
    if value not in known:
        raise UnknownNameError(f"{what} must be one of {', '.join(map(str, known))}, got {value!r}")


def spaced(
    schedule: NoiseSchedule,
    num_steps: int,
    spacing: str,
    *,
    points: str = "inner",
    offset: int = 0,
    final: str = "zero",
) -> tuple[Level, ...]:
    """The `num_steps + 1` levels of a named spacing; `offset` shifts the `leading` one.

    Raises UnknownNameError for a spacing or an end that is in no table, InputError for a number of
    steps that the spacing cannot have.
    """
    one_of("spacing", spacing, SPACINGS)
    one_of("final", final, FINALS)
    _check_steps(schedule, num_steps, at_least=2 if spacing in ("iddpm", "authors") else 1)
    if spacing == "authors":
        return authors(schedule, num_steps)
    if spacing in ("karras", "exponential", "lu"):
        ratios = (karras if spacing == "karras" else exponential)(schedule, num_steps)
        return (*_at_ratios(schedule, ratios, spacing, points), _end(schedule, final))
    return from_timesteps(schedule, _timesteps(schedule, num_steps, spacing, points, offset), final)


def from_timesteps(
    schedule: NoiseSchedule, timesteps: Sequence[float], final: str = "zero"
) -> tuple[Level, ...]:
    """Levels at given timesteps, which must fall and lie in the schedule; then the end.

    Between two training timesteps sigma / alpha is linear, as in diffusers.
    """
    last = schedule.config.num_train_timesteps - 1
    falling = all(a > b for a, b in pairwise(timesteps))
    if not timesteps or not falling or timesteps[0] > last or timesteps[-1] < 0:
        raise InputError(f"timesteps must fall and lie between {last} and 0, got {list(timesteps)}")
    levels = [Level.from_ratio(float(t), schedule.ratio_at(t)) for t in timesteps]
    return (*levels, _end(schedule, final))


def from_ratios(schedule: NoiseSchedule, ratios: Sequence[float]) -> tuple[Level, ...]:
    """Levels at given sigma / alpha, the end included (diffusers' `sigmas=`); they must fall."""
    falling = all(a > b for a, b in pairwise(ratios))
    if len(ratios) < 2 or not falling or ratios[-1] < 0:
        raise InputError(f"sigmas must be two or more that fall to 0 or above, got {list(ratios)}")
    timesteps = [schedule.timestep_of(r) for r in ratios]
    return tuple(Level.from_ratio(t, r) for t, r in zip(timesteps, ratios, strict=True))


def karras(schedule: NoiseSchedule, num_steps: int, rho: float = 7.0) -> list[float]:
    """sigma / alpha from end to end of the schedule (Karras et al. 2022, eq. 5)."""
    low, high = (float(schedule.ratios[i]) ** (1 / rho) for i in (0, -1))
    return [float(r) for r in np.linspace(high, low, num_steps) ** rho]


def exponential(schedule: NoiseSchedule, num_steps: int) -> list[float]:
    """sigma / alpha from end to end of the schedule, uniform in log-SNR (Lu et al. 2022)."""
    low, high = (math.log(float(schedule.ratios[i])) for i in (0, -1))
    return [float(r) for r in np.exp(np.linspace(high, low, num_steps))]


def align_your_steps(num_steps: int) -> list[float]:
    """Timesteps of Align Your Steps, the table of ten log-linearly interpolated in noise level.

    The table belongs to SDXL's schedule. It is carried over by timestep: by noise level it would
    leave out the noisiest part of a schedule that goes further, as PixArt's does.
    """
    ends = np.linspace(0, 1, len(AYS_RATIOS))
    logs = np.interp(np.linspace(0, 1, num_steps), ends, np.log(AYS_RATIOS))
    sdxl = NoiseSchedule(
        ScheduleConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    )
    return [float(round(sdxl.timestep_of(float(np.exp(x))))) for x in logs]


def iddpm(num_train_timesteps: int, num_steps: int) -> list[float]:
    """Respacing "N" of improved DDPM: evenly spaced, rounded (Nichol & Dhariwal 2021)."""
    stride = (num_train_timesteps - 1) / (num_steps - 1)
    position, rising = 0.0, []
    for _ in range(num_steps):
        rising.append(float(round(position)))
        # summed, not multiplied: ties round as in the published code
        position += stride
    return rising[::-1]


def authors(schedule: NoiseSchedule, num_steps: int) -> tuple[Level, ...]:
    """The PixArt authors' grid: continuous time from 1 to 1/T, ending at training level 0.

    The network is told (t - 1/T) T: 999, 927.643, 856.286, ... for 14 steps. The picture keeps the
    noise of level 0 (sigma 0.01).
    """
    num = schedule.config.num_train_timesteps
    times = np.linspace(1.0, 1.0 / num, num_steps + 1)
    return tuple(schedule.level_between(max(0.0, float(t) * num - 1.0)) for t in times)


def lcm(num_train_timesteps: int, num_steps: int, even: bool = False) -> list[float]:
    """Timesteps of latent consistency sampling (Luo et al. 2023): 999, 759, 519, 279 for four.

    `even` spreads them over the whole range as diffusers does: 999, 759, 499, 259.
    """
    if num_steps > LCM_STEPS:
        raise InputError(
            f"consistency models are distilled on {LCM_STEPS} steps and take no more, "
            f"got {num_steps}"
        )
    stride = num_train_timesteps // LCM_STEPS
    falling = [stride * k - 1 for k in range(LCM_STEPS, 0, -1)]
    skip = LCM_STEPS // num_steps
    picks = [LCM_STEPS * i // num_steps if even else skip * i for i in range(num_steps)]
    return [float(falling[pick]) for pick in picks]


def _check_steps(schedule: NoiseSchedule, num_steps: int, at_least: int) -> None:
    num = schedule.config.num_train_timesteps
    if not at_least <= num_steps <= num:
        raise InputError(
            f"num_inference_steps must be between {at_least} and {num}, got {num_steps}"
        )


def _timesteps(
    schedule: NoiseSchedule, num_steps: int, spacing: str, points: str, offset: int
) -> list[float]:
    num = schedule.config.num_train_timesteps
    if spacing == "iddpm":
        return iddpm(num, num_steps)
    if spacing in ("lcm", "lcm-even"):
        return lcm(num, num_steps, even=spacing == "lcm-even")
    if spacing == "ays":
        return align_your_steps(num_steps)
    if spacing == "trailing":
        return [float(round(num - k * num / num_steps) - 1) for k in range(num_steps)]
    inner = points == "inner"
    if inner and num_steps >= num:
        raise InputError(
            f"num_inference_steps must be {num - 1} at most for this sampler, whose last step ends "
            f"within the schedule; got {num_steps}"
        )
    if spacing == "leading":
        stride = num // (num_steps + inner)
        return [float(k * stride + offset) for k in range(num_steps + inner)][::-1][:num_steps]
    rising = np.linspace(0, num - 1, num_steps + inner)
    # numpy's own linspace and rounding, so that ties fall as in the published schedulers
    whole = rising if points == "real" else rising.round()
    return [float(t) for t in whole[::-1][:num_steps]]


def _at_ratios(
    schedule: NoiseSchedule, ratios: Sequence[float], spacing: str, points: str
) -> tuple[Level, ...]:
    """Levels whose noise is exact and whose timestep is rounded as in the published schedulers."""
    timesteps = [schedule.timestep_of(r) for r in ratios]
    if points != "real":
        # diffusers rounds for karras and lu, and cuts the fraction off for exponential
        cut = math.floor if spacing == "exponential" else round
        timesteps = [float(cut(t)) for t in timesteps]
    return tuple(Level.from_ratio(t, r) for t, r in zip(timesteps, ratios, strict=True))


def _end(schedule: NoiseSchedule, final: str) -> Level:
    return Level(0.0, 1.0, 0.0) if final == "zero" else schedule.level(0)
