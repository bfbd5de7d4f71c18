"""UniPC: unified predictor and corrector (Zhao et al. 2023, arXiv 2302.04867), in x0."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pixsigma.diffusion.grids import one_of
from pixsigma.diffusion.samplers.base import GridSampler, Noise, Predict, State
from pixsigma.diffusion.schedule import Level
from pixsigma.shapes import Latents


@dataclass(frozen=True)
class Move:
    """The last prediction step, which the corrector takes again with one more evaluation."""

    x: Latents
    x0s: tuple[Tensor, ...]
    """Predictions up to where it began, the newest last."""
    order: int


@dataclass(frozen=True, kw_only=True)
class UniPC(GridSampler):
    """One evaluation a step: correct the point where it was made, then predict the next."""

    order: int = 2
    """Order of the predictor; the corrector adds one."""
    solver_type: str = "bh2"
    """B(h): `bh1` is h, `bh2` is exp(h) - 1."""
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()
    """Steps that are not corrected afterwards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("solver order", self.order, (1, 2, 3))
        one_of("solver_type", self.solver_type, ("bh1", "bh2"))

    def step(
        self,
        predict: Predict,
        state: State,
        x: Latents,
        levels: Sequence[Level],
        i: int,
        noise: Noise,
    ) -> tuple[Latents, State]:
        """Evaluate, correct the step before with it, predict the coming one."""
        x0 = predict(x, levels[i]).x0
        x0s = (x0,) if state is None else (*state.x0s, x0)[-self.order - 1 :]
        if state is not None and i - 1 not in self.disable_corrector:
            x = self._corrected(state, levels, i, x0)
        order = self._order_at(i, levels)
        moved = self._predicted(x, levels, i, x0s[-order:])
        return moved, Move(x, x0s, order)

    def _order_at(self, i: int, levels: Sequence[Level]) -> int:
        left = len(levels) - 1 - i
        if left == 1 and levels[-1].sigma == 0:
            return 1
        return min(self.order, i + 1, left if self.lower_order_final else self.order)

    def _predicted(
        self, x: Latents, levels: Sequence[Level], i: int, x0s: Sequence[Tensor]
    ) -> Latents:
        h = levels[i + 1].log_snr - levels[i].log_snr
        if h == 0:
            return x
        shares = _shares(levels, i, len(x0s), h)
        # order 2 has the simpler weight that the paper proposes for both B(h)
        weights = [0.5] if len(x0s) == 2 else _solve(shares, h, self.solver_type)
        return self._moved(x, levels[i], levels[i + 1], x0s, shares, weights)

    def _corrected(self, move: Move, levels: Sequence[Level], i: int, x0: Tensor) -> Latents:
        start, end = levels[i - 1], levels[i]
        h = end.log_snr - start.log_snr
        shares = _shares(levels, i - 1, move.order, h)
        weights = [0.5] if move.order == 1 else _solve([*shares, 1.0], h, self.solver_type)
        moved = self._moved(move.x, start, end, move.x0s[-move.order :], shares, weights[:-1])
        return moved - end.alpha * self._bh(h) * weights[-1] * (x0 - move.x0s[-1])

    def _moved(
        self,
        x: Latents,
        start: Level,
        end: Level,
        x0s: Sequence[Tensor],
        shares: Sequence[float],
        weights: Sequence[float],
    ) -> Latents:
        h = end.log_snr - start.log_snr
        moved = end.sigma / start.sigma * x - end.alpha * math.expm1(-h) * x0s[-1]
        for k, (share, weight) in enumerate(zip(shares, weights, strict=True)):
            slope = (x0s[-k - 2] - x0s[-1]) / share
            moved = moved - end.alpha * self._bh(h) * weight * slope
        return moved

    def _bh(self, h: float) -> float:
        return -h if self.solver_type == "bh1" else math.expm1(-h)


def _shares(levels: Sequence[Level], i: int, order: int, h: float) -> list[float]:
    """How far back the older evaluations lie, in steps of h; negative."""
    return [(levels[i - k].log_snr - levels[i].log_snr) / h for k in range(1, order)]


def _solve(shares: Sequence[float], h: float, solver_type: str) -> list[float]:
    """Weights of the differences, from the order conditions (paper, eq. 7 and appendix)."""
    if not shares:
        return []
    scale = -h if solver_type == "bh1" else math.expm1(-h)
    phi, rights = math.expm1(-h) / -h - 1, []
    for k in range(1, len(shares) + 1):
        rights.append(phi * math.factorial(k) / scale)
        phi = phi / -h - 1 / math.factorial(k + 1)
    powers = np.vander(shares, increasing=True).T
    return [float(weight) for weight in np.linalg.solve(powers, rights)]
