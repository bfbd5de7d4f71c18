"""DPM-Solver++, multistep (Lu et al. 2022, "DPM-Solver++", arXiv 2211.01095)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pixsigma.diffusion.grids import one_of
from pixsigma.diffusion.samplers.base import GridSampler, Noise, Predict, State
from pixsigma.diffusion.schedule import Level
from pixsigma.errors import InputError
from pixsigma.shapes import Latents

ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++")
"""The ODE and the SDE of the paper, both in x0."""

SOLVER_TYPES = ("midpoint", "heun")
"""How the slope of x0 is weighted."""

FEW_STEPS = 15
"""Below this many steps diffusers lowers the order of the last two."""


@dataclass(frozen=True, kw_only=True)
class DPMSolver(GridSampler):
    """DPM-Solver++(2M) and its neighbours; the defaults are those published with PixArt-Σ.

    Order 3 is the published update, which takes half of the second derivative: it converges with
    order 2 and a smaller error.
    """

    order: int = 2
    algorithm: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    """Lower the order of the last steps: for under 15 steps only, unless `lower_order_always`."""
    lower_order_always: bool = False
    """The PixArt authors' reading of `lower_order_final`: for any number of steps."""
    euler_at_final: bool = False
    """Order 1 in the last step, whatever `lower_order_final` says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.order, self.algorithm, self.solver_type)

    def init(self, x: Latents, levels: Sequence[Level]) -> State:
        """No x0 yet."""
        return ()

    def step(
        self,
        predict: Predict,
        state: State,
        x: Latents,
        levels: Sequence[Level],
        i: int,
        noise: Noise,
    ) -> tuple[Latents, State]:
        """One evaluation, extrapolated with those of the steps before."""
        x0s = (*state, predict(x, levels[i]).x0)[-self.order :]
        order = min(self._order_at(i, levels), len(x0s))
        # the SDE draws in every step, so that a seed means the same noise for every end
        fresh = noise() if self.algorithm == "sde-dpmsolver++" else None
        slopes = _slopes(x0s, [level.log_snr for level in levels[max(0, i - 2) : i + 2]], order)
        moved = advance(x, levels[i], levels[i + 1], (x0s[-1], *slopes), self.solver_type, fresh)
        return moved, x0s

    def _order_at(self, i: int, levels: Sequence[Level]) -> int:
        num_steps, left = len(levels) - 1, len(levels) - 1 - i
        if left == 1 and (self.euler_at_final or levels[-1].sigma == 0):
            return 1
        few = self.lower_order_always or num_steps < FEW_STEPS
        return min(self.order, left) if self.lower_order_final and few else self.order


def check_solver(order: int, algorithm: str, solver_type: str) -> None:
    """Raise for an order, algorithm or solver type that DPM-Solver++ has not."""
    one_of("solver order", order, (1, 2, 3))
    one_of("algorithm", algorithm, ALGORITHMS)
    one_of("solver_type", solver_type, SOLVER_TYPES)
    if order == 3 and algorithm == "sde-dpmsolver++":
        raise InputError("the SDE of DPM-Solver++ is known up to order 2, got order 3")


def advance(
    x: Latents,
    start: Level,
    end: Level,
    terms: Sequence[Tensor],
    solver_type: str,
    fresh: Tensor | None,
) -> Latents:
    """Integrate x0 = D0 + D1 u + D2 u²/2 over a step, u from 0 to 1 in log-SNR (appendix A).

    `terms` are D0, and D1 and D2 where known. With `fresh` noise the SDE is meant: its exponents
    are doubled.
    """
    h = end.log_snr - start.log_snr
    if h == 0:
        return x
    stretched = h if fresh is None else 2 * h
    decay = math.expm1(-stretched)
    kept = end.sigma / start.sigma * (1.0 if fresh is None else math.exp(-h))
    moved = kept * x - end.alpha * decay * terms[0]
    if len(terms) == 2 and solver_type == "midpoint":
        moved = moved - end.alpha * 0.5 * decay * terms[1]
    elif len(terms) > 1:
        moved = moved + end.alpha * (decay / stretched + 1) * terms[1]
    if len(terms) == 3:
        moved = moved - end.alpha * ((decay + stretched) / stretched**2 - 0.5) * terms[2]
    if fresh is None:
        return moved
    return moved + end.sigma * math.sqrt(-math.expm1(-2 * h)) * fresh


def _slopes(x0s: Sequence[Tensor], log_snrs: Sequence[float], order: int) -> tuple[Tensor, ...]:
    """D1, or D1 and D2, from the last two or three x0, in units of the coming step."""
    if order == 1:
        return ()
    h, before = log_snrs[-1] - log_snrs[-2], log_snrs[-2] - log_snrs[-3]
    first = (x0s[-1] - x0s[-2]) * (h / before)
    if order == 2:
        return (first,)
    earlier = log_snrs[-3] - log_snrs[-4]
    second = (x0s[-2] - x0s[-3]) * (h / earlier)
    change = (first - second) / (before + earlier)
    return first + change * before, change * h
