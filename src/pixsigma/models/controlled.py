"""The base with what stands beside it in a drawing: copies that follow hints, image prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pixsigma.interfaces import Conditions, Perturbation
from pixsigma.models.blocks import Beside
from pixsigma.models.controlnet import ControlNet
from pixsigma.models.image_prompt import ImagePrompt
from pixsigma.models.transformer import Caption
from pixsigma.shapes import Latents, Timesteps

Network: TypeAlias = ControlNet | ImagePrompt
"""What can stand beside the base."""


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet or an image prompt at work in one drawing."""

    network: Network
    hint: Latents
    """(1 or B, C, H, W): scaled latents of the picture, which for a ControlNet is a hint of the
    drawing's size."""
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

    A text as it reads it has the layers of the base, with pictures beside it, then those of each
    copy.
    """

    def __init__(self, base: Any, controls: Sequence[Control]) -> None:
        """`base` is a PixArtTransformer or what stands for one."""
        self.base = base
        self.controls = tuple(controls)
        self._copies: dict[int, ControlNet] = {}
        self._prompts: dict[int, ImagePrompt] = {}
        self._layers: dict[int, slice] = {}
        end = base.config.num_layers
        for k, control in enumerate(self.controls):
            if isinstance(control.network, ControlNet):
                self._copies[k] = control.network
                self._layers[k] = slice(end, end + len(control.network.copies))
                end = self._layers[k].stop
            else:
                self._prompts[k] = control.network
        self._tokens: dict[int, Tensor] = {}
        self._pictures: list[tuple[Beside, ...]] | None = None

    def read(self, text: Tensor, mask: Tensor | None = None, leading: bool = False) -> Caption:
        """The text as the base reads it, and as each of the copies does.

        With `leading` the pictures of image prompts stand beside it.
        """
        words = tuple(self.base.read(text, mask))
        if leading and self._prompts:
            pairs = zip(words, self._read_pictures(text.device), strict=True)
            words = tuple(each._replace(pictures=pictures) for each, pictures in pairs)
        embedded = self.base.y_embedder(text.to(self.base.dtype))
        wide = None if mask is None else mask.bool()[:, None, None]
        for copy in self._copies.values():
            words += tuple(copy.read(embedded, wide))
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
        hints = {k: self._hint(k, x) for k in self._copies if working[k]}
        if not all(working[k] for k in self._prompts):
            captions = [self._without_resting(caption, working) for caption in captions]

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
        skips: Iterator[Tensor] = self._copies[k](tokens, rows, t0, own, grid)
        return skips

    def _read_pictures(self, device: torch.device) -> list[tuple[Beside, ...]]:
        """What each layer reads of the image prompts; the same in all steps."""
        if self._pictures is None:
            read = []
            for k, prompt in self._prompts.items():
                control = self.controls[k]
                pairs = prompt(*self.base.enter(control.hint.to(device)))
                read.append(
                    [Beside(keys, values, control.weight, control) for keys, values in pairs]
                )
            self._pictures = list(zip(*read, strict=True))
        return self._pictures

    def _without_resting(self, caption: Caption, working: Sequence[bool]) -> Caption:
        """The caption without the pictures whose time it is not."""
        at_work = [each for each, here in zip(self.controls, working, strict=True) if here]
        return tuple(
            words._replace(pictures=tuple(p for p in words.pictures if p.source in at_work))
            for words in caption
        )

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
