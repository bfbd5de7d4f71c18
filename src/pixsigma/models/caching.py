"""A transformer that leaves out what hardly changes from step to step of one drawing.

What the blocks after the first add to the tokens is remembered. Where the first block answers
nearly as it did then, what the others add is taken over, or forecast from its last change. Each
picture decides for itself, so it does not depend on what is drawn beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixsigma.fast_options import FastOptions
from pixsigma.interfaces import Conditions
from pixsigma.models.blocks import Memo
from pixsigma.models.transformer import Caption
from pixsigma.shapes import Latents, Timesteps


class Timed(NamedTuple):
    """A time as the network reads it, with its number."""

    embedded: Any
    timestep: float


@dataclass
class Memory:
    """What was last computed in full; R rows of T texts and B pictures, text by text."""

    first: Tensor
    """(R, N, D), what the first block added."""
    rest: Tensor
    """(R, N, D), what all others added."""
    change: Tensor
    """(R, N, D), how much `rest` grew per timestep since the full step before."""
    timestep: Tensor
    """(B,), of that step."""
    skipped: Tensor
    """(B,), steps since then."""


class CachingTransformer:
    """`network` for one drawing from `noisiest` to `last`, as `options` say; has its state."""

    def __init__(
        self, network: Any, options: FastOptions, noisiest: float, last: float = 0.0
    ) -> None:
        self.network = network
        self.options = options
        self.noisiest = noisiest
        self.length = max(noisiest - last, 1e-6)
        self.memory: Memory | None = None
        self.num_full = 0
        """Calls in which all blocks were computed."""
        self.num_calls = 0
        self._seen: tuple[Any, ...] = ()
        self._memos: list[Memo] = []

    def read(self, text: Tensor, mask: Tensor | None = None, **extra: Any) -> Caption:
        """The text as all layers read it, each with room for its answer."""
        caption = self.network.read(text, mask, **extra)
        if self.options.gate == 1:
            return caption
        words = tuple(each._replace(memo=Memo()) for each in caption)
        self._memos += [each.memo for each in words if each.memo is not None]
        return words

    def embed(self, t: Timesteps, conditions: Conditions | None = None) -> Timed:
        """The time as `__call__` reads it."""
        return Timed(self.network.embed(t, conditions), float(t[0]))

    def share(self, timestep: float) -> float:
        """How far a timestep is on the way from noise to picture."""
        return (self.noisiest - timestep) / self.length

    def __call__(
        self,
        x: Latents,
        t: Timed,
        captions: Sequence[Caption],
        variance: bool = True,
        perturbation: Any = None,
    ) -> Tensor:
        """What the network answers, or nearly so; the arguments are those of its forward."""
        share = self.share(t.timestep)
        for memo in self._memos:
            memo.keep = share >= self.options.gate
        if perturbation is not None or not self.options.cache:
            extra = {} if perturbation is None else {"perturbation": perturbation}
            return self.network(x, t.embedded, captions, variance=variance, **extra)
        self.num_calls += 1
        tokens, grid = self.network.enter(x)
        before = tokens.clone()
        tokens = self.network.through(tokens, t.embedded.t0, captions, grid, slice(0, 1))
        first = tokens - before
        seen = getattr(t.embedded, "working", ()), *map(id, captions)
        if seen != self._seen:  # guidance came or went, so other rows; or a control did
            self.memory, self._seen = None, seen
        tokens = self.followed(tokens, first, t, captions, grid, share)
        return self.network.leave(tokens, t.embedded.t, grid, variance)

    def followed(
        self,
        tokens: Tensor,
        first: Tensor,
        t: Timed,
        captions: Sequence[Caption],
        grid: tuple[int, int],
        share: float,
    ) -> Tensor:
        """Tokens after the first block to those after the last, computed or taken over."""
        pictures = len(tokens) // len(captions)
        kept = self.reused(first, pictures, share)
        forecast = None if self.memory is None else self.forecast(t.timestep)
        if forecast is not None and bool(kept.all()):
            assert self.memory is not None
            self.memory.skipped += 1
            return tokens.add_(forecast)
        self.num_full += 1
        after = self.network.through(tokens.clone(), t.embedded.t0, captions, grid, slice(1, None))
        rest = after - tokens
        rows = kept.repeat(len(captions))[:, None, None]
        if forecast is not None and bool(kept.any()):
            after = torch.where(rows, tokens + forecast, after)
        self.remember(first, rest, t.timestep, kept)
        return after

    def reused(self, first: Tensor, pictures: int, share: float) -> Tensor:
        """(B,) bool: the pictures whose first block has changed too little."""
        memory = self.memory
        if memory is None or share < self.options.begin:
            return torch.zeros(pictures, dtype=torch.bool, device=first.device)
        moved = (first - memory.first).abs().mean(dim=(1, 2)) / memory.first.abs().mean(dim=(1, 2))
        worst = moved.view(-1, pictures).amax(dim=0)
        return (worst < self.options.cache) & (memory.skipped < self.options.longest)

    def forecast(self, timestep: float) -> Tensor:
        """(R, N, D): what the blocks after the first should add at this time."""
        assert self.memory is not None
        memory = self.memory
        if not self.options.forecast:
            return memory.rest
        ahead = (timestep - memory.timestep).repeat(len(memory.rest) // len(memory.timestep))
        return memory.rest + memory.change * ahead[:, None, None]

    def remember(self, first: Tensor, rest: Tensor, timestep: float, kept: Tensor) -> None:
        """Keep what was computed, for the pictures that it was computed for."""
        old, pictures = self.memory, len(kept)
        now = torch.full((pictures,), timestep, device=rest.device)
        if old is None:
            none = torch.zeros(pictures, dtype=torch.int64, device=rest.device)
            self.memory = Memory(first, rest, torch.zeros_like(rest), now, none)
            return
        repeats = len(rest) // pictures
        rows = kept.repeat(repeats)[:, None, None]
        # two calls at one time (a corrector's) tell nothing of the change
        span = (now - old.timestep).repeat(repeats)[:, None, None]
        change = torch.where(span == 0, old.change, (rest - old.rest) / span)
        self.memory = Memory(
            torch.where(rows, old.first, first),
            torch.where(rows, old.rest, rest),
            torch.where(rows, old.change, change),
            torch.where(kept, old.timestep, now),
            torch.where(kept, old.skipped + 1, 0),
        )
