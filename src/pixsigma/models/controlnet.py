"""ControlNet-Transformer: a copy of the first blocks reads a hint and adds to the base's tokens.

Chen et al. 2024, "PixArt-δ", section 4. Names of weights are those of the authors' `.pth`
(`ControlPixArtHalf` in their `pixart_controlnet.py`): `controlnet.I.copied_block.…`,
`controlnet.I.after_proj.…` and `controlnet.0.before_proj.…`, so those load without translation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pixsigma.config import TransformerConfig
from pixsigma.errors import InputError
from pixsigma.interfaces import Conditions, Perturbation
from pixsigma.models.blocks import Block, Words
from pixsigma.models.transformer import Caption, PixArtTransformer, block_of
from pixsigma.shapes import Latents, Timesteps

NUM_COPIED = 13
"""Blocks that the published design copies, of 28."""


class ControlBlock(nn.Module):
    """A copied block and the links that join it to the base, zero at first."""

    def __init__(self, block: Block, width: int, first: bool) -> None:
        super().__init__()
        self.copied_block = block
        self.before_proj = _zero_linear(width) if first else None
        self.after_proj = _zero_linear(width)


class ControlNet(nn.Module):
    """The copy, for one kind of hint."""

    def __init__(self, config: TransformerConfig, num_copied: int | None = None) -> None:
        """Blocks as the first ones of a base of this config: 13, or half of a smaller network.

        Raises InputError where a copy would have no block of the base behind it.
        """
        super().__init__()
        num = min(NUM_COPIED, config.num_layers // 2) if num_copied is None else num_copied
        if not 1 <= num < config.num_layers:
            raise InputError(
                f"a control copies 1 to {config.num_layers - 1} blocks of this network, got {num}"
            )
        self.controlnet = nn.ModuleList(
            ControlBlock(block_of(config, i), config.width, i == 0) for i in range(num)
        )

    @classmethod
    def copy_of(cls, base: PixArtTransformer, num_copied: int | None = None) -> "ControlNet":
        """The first blocks of `base` with links of zero: what training begins with."""
        net = cls(base.config, num_copied)
        for copy, block in zip(net.copies, base.blocks, strict=False):
            copy.copied_block.load_state_dict(block.state_dict())
        return net.to(base.device)

    @property
    def copies(self) -> list[ControlBlock]:
        """The blocks, in order."""
        return [each for each in self.controlnet if isinstance(each, ControlBlock)]

    def read(self, text: Tensor, mask: Tensor | None) -> Caption:
        """Embedded texts (B, L, D) and mask (B, 1, 1, L) as the copies read them."""
        return tuple(each.copied_block.cross_attn.read(text, mask) for each in self.copies)

    def forward(
        self,
        x: Tensor,
        hint: Tensor,
        t0: Tensor,
        texts: Sequence[Caption],
        grid: tuple[int, int],
    ) -> Iterator[Tensor]:
        """What is added to the inputs of the base's blocks 1, 2, …, (B, N, D) each.

        x (B, N, D) left block 0 of the base; hint (B, N, D) are the hint's tokens.
        """
        c = hint
        for i, each in enumerate(self.copies):
            if each.before_proj is not None:
                c = x + each.before_proj(c)
            words: list[Words] = [text[i] for text in texts]
            c = each.copied_block(c, t0, words, grid)
            yield each.after_proj(c)


@dataclass(frozen=True, eq=False)
class Control:
    """A copy at work in one drawing."""

    network: ControlNet
    hint: Latents
    """(1 or B, C, H, W): scaled latents of the hint picture."""
    weight: float = 1.0
    begins: float = float("inf")
    """The noisiest timestep at which it works; it ends before `ends`."""
    ends: float = -1.0

    def at_work(self, t: Timesteps) -> bool:
        """Whether it takes part at this time, that of the first row."""
        if self.weight == 0 or (self.begins == float("inf") and self.ends < 0):
            return self.weight != 0  # nothing to fetch from the device
        return self.ends < float(t[0]) <= self.begins


class TimesAtWork(NamedTuple):
    """A time as the base reads it, and which of the controls work at it."""

    t: Tensor
    t0: tuple[Tensor, tuple[bool, ...]]

    @property
    def working(self) -> tuple[bool, ...]:
        """One for each control."""
        return self.t0[1]


class Controlled:
    """The base with its controls, as a drawing sees it; its parts are those of the base.

    A text as it reads it has the layers of the base, then those of each copy.
    """

    def __init__(self, base: Any, controls: Sequence[Control]) -> None:
        """`base` is a PixArtTransformer or what stands for one."""
        self.base = base
        self.controls = tuple(controls)
        ends = [base.config.num_layers]
        for control in self.controls:
            ends.append(ends[-1] + len(control.network.copies))
        self._layers = [slice(*pair) for pair in pairwise(ends)]
        self._tokens: dict[int, Tensor] = {}

    def read(self, text: Tensor, mask: Tensor | None = None) -> Caption:
        """The text as the base reads it, and as each of the copies does."""
        words = tuple(self.base.read(text, mask))
        embedded = self.base.y_embedder(text.to(self.base.dtype))
        wide = None if mask is None else mask.bool()[:, None, None]
        for control in self.controls:
            words += tuple(control.network.read(embedded, wide))
        return words

    def embed(self, t: Timesteps, conditions: Conditions | None = None) -> TimesAtWork:
        """The time, and which of the controls work at it."""
        times = self.base.embed(t, conditions)
        return TimesAtWork(times.t, (times.t0, tuple(c.at_work(t) for c in self.controls)))

    def enter(self, x: Latents) -> tuple[Tensor, tuple[int, int]]:
        """As the base's."""
        entered: tuple[Tensor, tuple[int, int]] = self.base.enter(x)
        return entered

    def through(
        self,
        x: Tensor,
        t0: tuple[Tensor, tuple[bool, ...]],
        captions: Sequence[Caption],
        grid: tuple[int, int],
        part: slice = slice(None),
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        """As the base's, with what the controls add; copies are never perturbed."""
        time, working = t0
        # here, as whoever stands for the base may not be asked while it answers
        hints = {k: self._hint(k, x) for k, here in enumerate(working) if here}

        def added(tokens: Tensor, t0: Tensor, grid: tuple[int, int]) -> Iterator[Tensor]:
            return _summed(
                [
                    (self.controls[k].weight, self._skips(k, tokens, hint, t0, captions, grid))
                    for k, hint in hints.items()
                ]
            )

        through: Tensor = self.base.through(
            x,
            time,
            captions,
            grid,
            part,
            perturbation=perturbation,
            control=added if hints else None,
        )
        return through

    def leave(self, x: Tensor, t: Tensor, grid: tuple[int, int], variance: bool = True) -> Tensor:
        """As the base's."""
        left: Tensor = self.base.leave(x, t, grid, variance)
        return left

    def __call__(
        self,
        x: Latents,
        times: TimesAtWork,
        texts: Sequence[Caption],
        *,
        perturbation: Perturbation | None = None,
        variance: bool = True,
    ) -> Tensor:
        """As the base's `forward`, with what the controls add."""
        tokens, grid = self.enter(x)
        tokens = self.through(tokens, times.t0, texts, grid, perturbation=perturbation)
        return self.leave(tokens, times.t, grid, variance)

    def _skips(
        self,
        k: int,
        tokens: Tensor,
        hint: Tensor,
        t0: Tensor,
        captions: Sequence[Caption],
        grid: tuple[int, int],
    ) -> Iterator[Tensor]:
        rows = hint.repeat(len(tokens) // len(hint), 1, 1)
        own = [caption[self._layers[k]] for caption in captions]
        skips: Iterator[Tensor] = self.controls[k].network(tokens, rows, t0, own, grid)
        return skips

    def _hint(self, k: int, tokens: Tensor) -> Tensor:
        """(1 or B, N, D): the tokens of a hint, with their places; the same in all steps."""
        if k not in self._tokens:
            self._tokens[k] = self.base.enter(self.controls[k].hint.to(tokens.device))[0]
        return self._tokens[k]


def _summed(sums: Sequence[tuple[float, Iterator[Tensor]]]) -> Iterator[Tensor]:
    while True:
        found = [weight * skip for weight, each in sums for skip in _next(each)]
        if not found:
            return
        yield torch.stack(found).sum(dim=0) if len(found) > 1 else found[0]


def _next(each: Iterator[Tensor]) -> list[Tensor]:
    skip = next(each, None)
    return [] if skip is None else [skip]


def _zero_linear(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
