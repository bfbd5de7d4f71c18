"""Pictures of different sizes in one forward pass, their tokens one after the other.

What a token does by itself (the linear layers) is one product for all; norms, gates and attention
are those of each size. It computes what `PixArtTransformer.forward` does, for inference.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixsigma.interfaces import Perturbation
from pixsigma.models.blocks import Block, Words, added, modulated_norm, shares
from pixsigma.models.transformer import Caption, Times
from pixsigma.shapes import Latents


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures of one size with what they read, as `PixArtTransformer.forward` has it."""

    x: Latents
    times: Times
    texts: Sequence[Caption]
    perturbation: Perturbation | None = None


@dataclass(frozen=True, eq=False)
class Place:
    """Where the tokens of one batch lie among those of all."""

    batch: Batch
    grid: tuple[int, int]
    x: Tensor
    """(B, N, D), a view of all tokens: what is added to it, is added there."""


def forward_packed(network: Any, batches: Sequence[Batch], variance: bool = True) -> list[Tensor]:
    """The answer to each batch, as `network` (a PixArtTransformer) would give it alone."""
    entered = [network.enter(batch.x) for batch in batches]
    parts = split(joined(tokens for tokens, _ in entered), [tokens for tokens, _ in entered])
    places = [
        Place(batch, grid, x) for batch, (_, grid), x in zip(batches, entered, parts, strict=True)
    ]
    for i, block in enumerate(network.blocks):
        through(block, i, places)
    return [network.leave(p.x, p.batch.times.t, p.grid, variance) for p in places]


def through(block: Block, layer: int, places: Sequence[Place]) -> None:
    """All tokens through a block; they are overwritten."""
    modulations = [block.modulation(place.batch.times.t0) for place in places]
    tokens = [place.x for place in places]

    def normed(first: int) -> Tensor:
        return joined(
            modulated_norm(x, each[first], each[first + 1])
            for x, each in zip(tokens, modulations, strict=True)
        )

    def add(update: Tensor, gate: int) -> None:
        for x, part, each in zip(tokens, split(update, tokens), modulations, strict=True):
            added(x, part, each[gate])

    add(attended(block, layer, normed(0), places), 2)
    add_texts(block, layer, places)
    add(block.mlp(normed(3)), 5)


def attended(block: Block, layer: int, x: Tensor, places: Sequence[Place]) -> Tensor:
    """(T, D) to (T, D): self-attention, in each picture for itself."""
    attn, tokens = block.attn, [place.x for place in places]
    given = zip(*(split(y, tokens) for y in attn.projected(x)), strict=True)
    mixed = []
    for (q, k, v), place in zip(given, places, strict=True):
        how = place.batch.perturbation
        here = how if how is not None and layer in how.layers else None
        mixed.append(attn.mixed(q, k, v, place.grid, here))
    update: Tensor = attn.proj(joined(mixed))
    return update


def add_texts(block: Block, layer: int, places: Sequence[Place]) -> None:
    """Cross-attention of rows to their texts; those of a single token ask nothing."""
    cross, asking = block.cross_attn, []
    for rows, words in readers(layer, places):
        if words.single:
            added(rows, cross(rows, words))
        else:
            asking.append((rows, words))
    if not asking:
        return
    tokens = [rows for rows, _ in asking]
    queries = split(cross.q_linear(joined(tokens)), tokens)
    mixed = [cross.mixed(q, words) for q, (_, words) in zip(queries, asking, strict=True)]
    for rows, update in zip(tokens, split(cross.proj(joined(mixed)), tokens), strict=True):
        added(rows, update)


def readers(layer: int, places: Iterable[Place]) -> Iterator[tuple[Tensor, Words]]:
    """Rows (B, N, D), a view, and the text that they read."""
    for place in places:
        texts = [caption[layer] for caption in place.batch.texts]
        yield from zip(place.x.split(shares(len(place.x), texts)), texts, strict=True)


def joined(parts: Iterable[Tensor]) -> Tensor:
    """(B, N, D) each, of any B and N, to (T, D)."""
    return torch.cat([part.flatten(0, 1) for part in parts])


def split(x: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """(T, D) to views (B, N, D) of these sizes."""
    sizes = [part.shape[:2] for part in like]
    parts = x.split([num * length for num, length in sizes])
    return [part.unflatten(0, size) for part, size in zip(parts, sizes, strict=True)]
