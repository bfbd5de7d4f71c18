"""SA-Solver: stochastic Adams predictor and corrector (Xue et al. 2023, arXiv 2309.05019)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pixsigma.diffusion.grids import one_of
from pixsigma.diffusion.samplers.base import GridSampler, Noise, Predict, State
from pixsigma.diffusion.schedule import Level
from pixsigma.errors import InputError
from pixsigma.shapes import Latents


@dataclass(frozen=True)
class Move:
    """The last prediction step, which the corrector takes again with one more evaluation."""

    x: Latents
    """The corrected latents where it began."""
    x0s: tuple[Tensor, ...]
    """Predictions up to there, the newest last."""
    tau: float
    fresh: Tensor
    """Its noise."""


@dataclass(frozen=True, kw_only=True)
class SASolver(GridSampler):
    """One evaluation a step: correct the point where it was made, then predict the next.

    The defaults are the SASolverScheduler of diffusers; with `spacing="authors", authors=True`
    the sampler of the PixArt repository.
    """

    final: str = "sigma_min"
    order: int = 2
    """Order of the predictor."""
    corrector_order: int = 2
    tau: float = 1.0
    """How much of the noise is renewed: 0 follows the ODE, 1 the SDE."""
    stochastic_between: tuple[float, float] = (200.0, 800.0)
    """Timesteps between which `tau` holds; elsewhere it is 0."""
    lower_order_final: bool = True
    authors: bool = False
    """tau of a step is that of its end, the last step has none, and one noise is drawn in vain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("predictor order", self.order, (1, 2, 3, 4))
        one_of("corrector order", self.corrector_order, (1, 2, 3, 4))
        if self.tau < 0:
            raise InputError(f"tau must be 0 or more, got {self.tau}")

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
        if state is None:
            x0s: tuple[Tensor, ...] = (x0,)
            if self.authors:
                noise()
        else:
            x0s = (*state.x0s, x0)[-max(self.order, self.corrector_order) :]
            order = self._lowered(self.corrector_order, len(levels) - i + 1, i + 1)
            x = _adams(state.x, levels, i - 1, i, x0s[-order:], state.tau, state.fresh)
        fresh = noise()
        tau = self._tau(levels, i)
        order = self._lowered(self.order, len(levels) - 1 - i, i + 1)
        moved = _adams(x, levels, i, i, x0s[-order:], tau, fresh)
        return moved, Move(x, x0s, tau, fresh)

    def _lowered(self, order: int, left: int, known: int) -> int:
        return min(order, known, left) if self.lower_order_final else min(order, known)

    def _tau(self, levels: Sequence[Level], i: int) -> float:
        if self.authors and i == len(levels) - 2:
            return 0.0
        low, high = self.stochastic_between
        return self.tau if low <= levels[i + self.authors].timestep <= high else 0.0


def _adams(
    x: Latents,
    levels: Sequence[Level],
    i: int,
    newest: int,
    x0s: Sequence[Tensor],
    tau: float,
    fresh: Tensor,
) -> Latents:
    """From level i to i + 1 with the x0 at levels ..., `newest` (paper, eqs. 14 and 17).

    `newest` is i for the predictor and i + 1 for the corrector.
    """
    start, end = levels[i], levels[i + 1]
    h = end.log_snr - start.log_snr
    if h == 0:
        return x
    # 0 · inf is no number: at a noise-free end tau is kept out of the products
    lost = tau**2 * h if tau else 0.0
    moved = math.exp(-lost) * end.sigma / start.sigma * x
    nodes = [levels[newest - k].log_snr - end.log_snr for k in range(len(x0s))]
    for weight, x0 in zip(_weights(nodes, h, 1 + tau**2), reversed(x0s), strict=True):
        moved = moved + end.alpha * weight * x0
    if tau == 0:
        return moved
    return moved + end.sigma * math.sqrt(-math.expm1(-2 * lost)) * fresh


def _weights(nodes: Sequence[float], h: float, stretch: float) -> list[float]:
    """Integrals of stretch · exp(stretch u) over [-h, 0] times the Lagrange basis at `nodes`."""
    if len(nodes) == 1:
        return [-math.expm1(-stretch * h)]
    moments = _moments(h, stretch, len(nodes))
    weights = []
    for k, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != k]
        basis = np.poly(others)[::-1] / np.prod([node - other for other in others])
        weights.append(stretch * float(np.dot(basis, moments)))
    if len(nodes) == 2:
        # paper, appendix D: one more term of third order, as in UniPC, for few steps
        excess = h * h / 2 - (h * stretch - 1 + math.exp(-stretch * h)) / stretch**2
        extra = stretch * excess / (nodes[0] - nodes[1])
        weights = [weights[0] + extra, weights[1] - extra]
    return weights


def _moments(h: float, stretch: float, count: int) -> list[float]:
    """Integrals of exp(stretch u) u^k over [-h, 0], by parts."""
    decay = math.exp(-stretch * h)
    moments = [(1 - decay) / stretch]
    for k in range(1, count):
        moments.append((-decay * (-h) ** k - k * moments[-1]) / stretch)
    return moments
