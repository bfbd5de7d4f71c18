"""ControlNet-Transformer: a copy of the first blocks reads a hint and adds to the base's tokens.

Chen et al. 2024, "PixArt-δ", section 4. The layout of the authors' `.pth` (`ControlPixArtHalf`) is
`controlnet.I.copied_block.…`, `controlnet.I.after_proj.…` and `controlnet.0.before_proj.…`; ours
has the same names, so those load without translation.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pixsigma.errors import InputError
from pixsigma.interfaces import Conditions, Perturbation
from pixsigma.models.blocks import Block, Words
from pixsigma.models.transformer import Caption, PixArtTransformer, Times
from pixsigma.shapes import Latents, Timesteps

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def __init__(self, base: PixArtTransformer, num_copied: int | None = None) -> None:
        """Copy the first blocks of `base`: 13, or half of a smaller network.

        Raises InputError where a copy would have no block of the base behind it.
        """
        super().__init__()
        num = min(NUM_COPIED, base.config.num_layers // 2) if num_copied is None else num_copied
        if not 1 <= num < base.config.num_layers:
            raise InputError(
                f"a control copies 1 to {base.config.num_layers - 1} blocks of this network, "
                f"got {num}"
            )
        width = base.config.width
        self.controlnet = nn.ModuleList(
            ControlBlock(deepcopy(base.blocks[i]), width, i == 0)  # type: ignore[arg-type]
            for i in range(num)
        )

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
    ) -> "Iterator[Tensor]":
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
    begins: float = 999.0
    """The noisiest timestep at which it works; it ends before `ends`."""
    ends: float = -1.0

    def at_work(self, timestep: float) -> bool:
        """Whether it takes part at this timestep."""
        return self.weight != 0 and self.ends < timestep <= self.begins


class Controlled:
    """The base with its controls, as a drawing sees it; `read` and `embed` as the base has them."""

    def __init__(self, base: PixArtTransformer, controls: Sequence[Control]) -> None:
        self.base = base
        self.controls = tuple(controls)

    def read(self, text: Tensor, mask: Tensor | None = None) -> Any:
        """The text as the base reads it, and as each of the copies does."""
        base = self.base
        embedded = base.y_embedder(text.to(base.dtype))
        wide = None if mask is None else mask.bool()[:, None, None]
        copies = tuple(control.network.read(embedded, wide) for control in self.controls)
        return base.read(text, mask), copies

    def embed(self, t: Timesteps, conditions: Conditions | None = None) -> Any:
        """The time, and which of the controls work at it."""
        working = tuple(control.at_work(float(t[0])) for control in self.controls)
        return self.base.embed(t, conditions), working

    def __call__(
        self,
        x: Latents,
        times: tuple[Times, tuple[bool, ...]],
        texts: Sequence[tuple[Caption, tuple[Caption, ...]]],
        *,
        perturbation: Perturbation | None = None,
        variance: bool = True,
    ) -> Tensor:
        """As the base's `forward`, with what the controls add."""
        time, working = times

        def added(tokens: Tensor, t0: Tensor, grid: tuple[int, int]) -> "Iterator[Tensor]":
            sums = [
                (control.weight, self._skips(k, tokens, t0, texts, grid))
                for k, control in enumerate(self.controls)
                if working[k]
            ]
            yield from _summed(sums)

        return self.base(
            x,
            time,
            [base for base, _ in texts],
            perturbation=perturbation,
            variance=variance,
            control=added if any(working) else None,
        )

    def _skips(
        self, k: int, tokens: Tensor, t0: Tensor, texts: Sequence[Any], grid: tuple[int, int]
    ) -> "Iterator[Tensor]":
        control = self.controls[k]
        hint = control.hint.to(tokens.device, tokens.dtype)
        embedded = self.base.x_embedder(hint) + self.base.positions(*grid, tokens.device)
        embedded = embedded.to(tokens.dtype)
        rows = embedded.repeat(len(tokens) // len(embedded), 1, 1)
        own = [copies[k] for _, copies in texts]
        return control.network(tokens.clone(), rows, t0, own, grid)


def _summed(sums: "Sequence[tuple[float, Iterator[Tensor]]]") -> "Iterator[Tensor]":
    while True:
        found = [weight * skip for weight, each in sums for skip in _next(each)]
        if not found:
            return
        yield torch.stack(found).sum(dim=0) if len(found) > 1 else found[0]


def _next(each: "Iterator[Tensor]") -> list[Tensor]:
    skip = next(each, None)
    return [] if skip is None else [skip]


def _zero_linear(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
