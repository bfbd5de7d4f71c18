"""DPM-Solver++, singlestep: groups of steps that start again from one point (Lu et al. 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pixsigma.diffusion.samplers.base import GridSampler, Noise, Predict, State
from pixsigma.diffusion.samplers.dpm_solver import advance, check_solver
from pixsigma.diffusion.schedule import Level
from pixsigma.shapes import Latents


@dataclass(frozen=True)
class Group:
    """The steps since a group began."""

    first: int
    """Index of the level where it began."""
    x: Latents
    """The latents there."""
    x0s: tuple[Tensor, ...]
    """What was predicted at each level since."""


@dataclass(frozen=True, kw_only=True)
class DPMSinglestep(GridSampler):
    """DPM-Solver++(2S) and (3S): every step is one evaluation, a group of `order` spans them.

    Steps that fill no group, and the step to a noise-free end, are taken at a lower order.
    """

    order: int = 2
    algorithm: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = False
    """Keep the last steps for lower orders even where the groups come out even."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.order, self.algorithm, self.solver_type)

    def step(
        self,
        predict: Predict,
        state: State,
        x: Latents,
        levels: Sequence[Level],
        i: int,
        noise: Noise,
    ) -> tuple[Latents, State]:
        """Extend the group by one evaluation and go from its first level to the next."""
        x0 = predict(x, levels[i]).x0
        at_first = self._orders(levels)[i] == 1 or state is None
        group = Group(i, x, (x0,)) if at_first else replace(state, x0s=(*state.x0s, x0))
        fresh = noise() if self.algorithm == "sde-dpmsolver++" else None
        start, end = levels[group.first], levels[i + 1]
        lags = [level.log_snr - start.log_snr for level in levels[group.first + 1 : i + 2]]
        terms = _terms(group.x0s, lags, self.solver_type)
        kind = "midpoint" if len(group.x0s) == 2 and self.solver_type == "midpoint" else "heun"
        return advance(group.x, start, end, terms, kind, fresh), group

    def _orders(self, levels: Sequence[Level]) -> list[int]:
        """The order of each step: 1, 2 (, 3) in turn, the last ones lowered."""
        num, order, zero = len(levels) - 1, self.order, levels[-1].sigma == 0
        cycle = [1 + i % order for i in range(num)]
        if num % order == 0 and (self.lower_order_final or zero) and order > 1:
            cycle[-2:] = [cycle[-2], 1] if order == 2 else [2, 1]
        if zero:
            cycle[-1] = 1
        return cycle


def _terms(x0s: Sequence[Tensor], lags: Sequence[float], solver_type: str) -> tuple[Tensor, ...]:
    """D0, D1 and D2 in units of the whole step; `lags` are log-SNRs since the group began."""
    h = lags[-1]
    if len(x0s) == 1:
        return (x0s[0],)
    far = (x0s[-1] - x0s[0]) * (h / lags[-2])
    # midpoint leaves the curvature out in the third order too (Lu et al. 2022, algorithm 3S)
    if len(x0s) == 2 or solver_type == "midpoint":
        return x0s[0], far
    near = (x0s[1] - x0s[0]) * (h / lags[0])
    gap = (lags[-2] - lags[0]) / h
    slope = (near * lags[-2] - far * lags[0]) / (lags[-2] - lags[0])
    return x0s[0], slope, 2 * (far - near) / gap
