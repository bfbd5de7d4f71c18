"""A network over latents larger than it was trained on: overlapping windows, asked one by one.

MultiDiffusion (Bar-Tal et al. 2023, eq. 5): the answer for the whole is the weighted mean of the
windows' answers. Weights fall linearly over an overlap and sum to one, so there is no edge where
one window ends, and the noise is that of the whole, so windows agree on what they begin with.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pixsigma.errors import InputError
from pixsigma.shapes import Latents

OVERLAP = 0.25
"""Share of a window's side that its neighbour sees too, at least."""

Place: TypeAlias = tuple[slice, slice, Tensor]
"""Rows, columns, and weights (height, width) of a window."""


class Windowed:
    """The network as `denoising` calls it, on windows of at most `side` (height, width) latents.

    Where one window holds everything it is the network itself, to the last bit.
    """

    def __init__(self, network: Any, side: tuple[int, int]) -> None:
        self.network = network
        self.side = side

    def __getattr__(self, name: str) -> Any:
        # `read` and `embed`, where the network has them: texts and times know no places
        if name == "through":
            raise AttributeError("windows have no common blocks")
        return getattr(self.network, name)

    def __call__(self, x: Latents, t: Any, text: Any, *rest: Any, **extra: Any) -> Tensor:
        """The network's answer to x (B, C, H, W).

        Raises InputError for what is tied to places of the whole, such as a hint.
        """
        if unknown := extra.keys() - {"variance", "perturbation"}:
            raise InputError(f"tiles do not go with {', '.join(sorted(unknown))}: leave one out")
        places = layout((x.shape[-2], x.shape[-1]), self.side)
        if len(places) == 1:
            return self.network(x, t, text, *rest, **extra)
        whole: Tensor | None = None
        for rows, columns, weights in places:
            answer = self.network(x[..., rows, columns].contiguous(), t, text, *rest, **extra)
            if whole is None:
                shape = (*answer.shape[:2], *x.shape[-2:])
                whole = torch.zeros(shape, dtype=torch.float32, device=x.device)
            whole[..., rows, columns] += answer.float() * weights.to(x.device)
        assert whole is not None
        return whole.to(answer.dtype)


@cache
def layout(size: tuple[int, int], side: tuple[int, int]) -> tuple[Place, ...]:
    """The windows over `size` latents, row by row; their weights sum to one at every latent."""
    down, across = (starts(length, most) for length, most in zip(size, side, strict=True))
    height, width = (min(pair) for pair in zip(size, side, strict=True))
    rows = along(size[0], down, height)
    columns = along(size[1], across, width)
    return tuple(
        (slice(top, top + height), slice(left, left + width), (v[:, None] * h).float())
        for top, v in zip(down, rows, strict=True)
        for left, h in zip(across, columns, strict=True)
    )


def starts(length: int, side: int) -> list[int]:
    """Where windows begin along one axis: as few as overlap enough, evenly, at even places.

    Even, since a token is a square of two latents.
    """
    if length <= side:
        return [0]
    gaps = -(-(length - side) // max(2, int(side * (1 - OVERLAP))))
    return [round((length - side) * i / gaps / 2) * 2 for i in range(gaps)] + [length - side]


def along(length: int, begin: Sequence[int], side: int) -> list[Tensor]:
    """Weights (side,) of each window along one axis, float64: ramps where neighbours overlap."""
    places = torch.arange(side, dtype=torch.float64) + 0.5
    found = []
    for i, start in enumerate(begin):
        weights = torch.ones(side, dtype=torch.float64)
        if i > 0:
            weights = torch.minimum(weights, places / (begin[i - 1] + side - start))
        if i + 1 < len(begin):
            weights = torch.minimum(weights, (side - places) / (start + side - begin[i + 1]))
        found.append(weights)
    total = torch.zeros(length, dtype=torch.float64)
    for start, weights in zip(begin, found, strict=True):
        total[start : start + side] += weights
    pairs = zip(begin, found, strict=True)
    return [weights / total[start : start + side] for start, weights in pairs]
