"""What a sampler is: a frozen value with `levels`, `init` and `step`; its state travels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

from torch import Tensor

from pixsigma.diffusion import grids
from pixsigma.diffusion.prediction import Prediction
from pixsigma.diffusion.schedule import Level, NoiseSchedule
from pixsigma.errors import InputError
from pixsigma.shapes import Latents

Predict: TypeAlias = Callable[[Latents, Level], Prediction]
"""The denoiser as samplers see it: guidance and parameterisation are already turned."""

Noise: TypeAlias = Callable[[], Tensor]
"""Draws fresh N(0, 1) noise shaped as the latents, each picture from its own generator."""

State: TypeAlias = Any
"""Whatever a sampler remembers between steps; only that sampler looks inside."""


class Sampler(Protocol):
    """Moves latents from noise to image along a grid of noise levels."""

    @property
    def order(self) -> int:
        """Order of convergence of the ODE (or of the noise-free part of the SDE)."""
        ...

    def levels(self, schedule: NoiseSchedule, num_steps: int) -> tuple[Level, ...]:
        """The grid: `num_steps + 1` levels, noisiest first, the last is where the picture is."""
        ...

    def levels_at(
        self,
        schedule: NoiseSchedule,
        timesteps: Sequence[float] | None = None,
        ratios: Sequence[float] | None = None,
    ) -> tuple[Level, ...]:
        """The grid at given timesteps, or at given sigma / alpha with the last one included."""
        ...

    def start(self, noise: Latents, levels: Sequence[Level]) -> Latents:
        """The first `x`, from N(0, 1) noise."""
        ...

    def init(self, x: Latents, levels: Sequence[Level]) -> State:
        """State before the first step."""
        ...

    def step(
        self,
        predict: Predict,
        state: State,
        x: Latents,
        levels: Sequence[Level],
        i: int,
        noise: Noise,
    ) -> tuple[Latents, State]:
        """Move `x` from `levels[i]` to `levels[i + 1]`."""
        ...


@dataclass(frozen=True, kw_only=True)
class GridSampler:
    """The part that samplers share: where their levels lie and what they start from."""

    points: ClassVar[str] = "inner"
    """How the class reads a spacing; see `grids`."""

    spacing: str = "linspace"
    """One of `grids.SPACINGS`."""
    steps_offset: int = 0
    """Added to the timesteps of the spacing `leading`."""
    final: str = "zero"
    """One of `grids.FINALS`; the spacing `authors` has its own end."""

    def __post_init__(self) -> None:
        grids.one_of("spacing", self.spacing, grids.SPACINGS)
        grids.one_of("final", self.final, grids.FINALS)

    def levels(self, schedule: NoiseSchedule, num_steps: int) -> tuple[Level, ...]:
        """The grid of this spacing: `num_steps + 1` levels, noisiest first."""
        return grids.spaced(
            schedule,
            num_steps,
            self.spacing,
            points=self.points,
            offset=self.steps_offset,
            final=self.final,
        )

    def levels_at(
        self,
        schedule: NoiseSchedule,
        timesteps: Sequence[float] | None = None,
        ratios: Sequence[float] | None = None,
    ) -> tuple[Level, ...]:
        """The grid at given timesteps, or at given sigma / alpha with the last one included.

        Raises InputError for neither or both, and for values that do not fall.
        """
        if timesteps is not None and ratios is None:
            return grids.from_timesteps(schedule, timesteps, self.final)
        if ratios is not None and timesteps is None:
            return grids.from_ratios(schedule, ratios)
        raise InputError("give either timesteps or sigmas, and not both")

    @property
    def reads_variance(self) -> bool:
        """Whether a step looks at the variance fraction; else no network need compute it."""
        return False

    def start(self, noise: Latents, levels: Sequence[Level]) -> Latents:
        """The first `x`: the noise as it is."""
        return noise

    def init(self, x: Latents, levels: Sequence[Level]) -> State:
        """No memory before the first step."""
        return None
