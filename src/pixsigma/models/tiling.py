"""Encoding and decoding in little memory: one picture at a time, or in overlapping blended tiles.

Tiles change the result a little (each has its own norms and attention); slices do not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixsigma.errors import InputError
from pixsigma.interfaces import Autoencoder
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.shapes import Images, Latents

DEFAULT_OVERLAP = 0.25


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Where tiles lie along both sides, in places of the input, and how they meet in the output."""

    size: int
    """Side of a tile in the input."""
    stride: int
    """From one tile's start to the next one's."""
    kept: int
    """Side of what the output keeps of a tile that has a neighbour after it."""
    blend: int
    """Width of the band of the output where two tiles fade into each other."""


def decode_sliced(autoencoder: Autoencoder, latents: Latents) -> Images:
    """Decode one picture at a time: the memory of one, equal to the whole batch at once."""
    return torch.cat([autoencoder.decode(one) for one in latents.split(1)])


def encode_sliced(autoencoder: Autoencoder, images: Images) -> Latents:
    """Encode one picture at a time: the memory of one, equal to the whole batch at once."""
    return torch.cat([autoencoder.encode(one) for one in images.split(1)])


def decode_tiled(
    autoencoder: KLAutoencoder,
    latents: Latents,
    *,
    tile: int | None = None,
    overlap: float = DEFAULT_OVERLAP,
) -> Images:
    """Decode in square tiles of `tile` pixels that overlap by a fraction of their side.

    `tile` is `config.sample_size` unless given; a picture no larger is decoded whole.
    Raises InputError for a tile of less than one latent or an overlap outside [0, 1).
    """
    pixels, small = _tile_sides(autoencoder, tile, overlap)
    if max(latents.shape[-2:]) <= small:
        return autoencoder.decode(latents)
    blend = int(pixels * overlap)
    stride = int(small * (1 - overlap))
    tiles = Tiles(size=small, stride=stride, kept=pixels - blend, blend=blend)
    return _tiled(autoencoder.decode, latents, tiles)


def encode_tiled(
    autoencoder: KLAutoencoder,
    images: Images,
    *,
    tile: int | None = None,
    overlap: float = DEFAULT_OVERLAP,
) -> Latents:
    """Encode in square tiles of `tile` pixels, the counterpart of `decode_tiled`.

    Raises InputError for a tile of less than one latent or an overlap outside [0, 1), and
    SizeError where a side of a tile is no multiple of the factor.
    """
    pixels, small = _tile_sides(autoencoder, tile, overlap)
    if max(images.shape[-2:]) <= pixels:
        return autoencoder.encode(images)
    blend = int(small * overlap)
    stride = int(pixels * (1 - overlap))
    tiles = Tiles(size=pixels, stride=stride, kept=small - blend, blend=blend)
    return _tiled(autoencoder.encode, images, tiles)


@dataclass(frozen=True)
class TiledAutoencoder:
    """An `Autoencoder` in little memory: pictures one at a time, large ones in tiles."""

    autoencoder: KLAutoencoder
    tile: int | None = None
    """Side of a tile in pixels; `config.sample_size` where None."""
    overlap: float = DEFAULT_OVERLAP

    def encode(self, images: Images) -> Latents:
        """Scaled latents, the mean of the posterior."""
        ae, tile, overlap = self.autoencoder, self.tile, self.overlap
        parts = [encode_tiled(ae, one, tile=tile, overlap=overlap) for one in images.split(1)]
        return torch.cat(parts)

    def decode(self, latents: Latents) -> Images:
        """Pictures in about [-1, 1], not clamped."""
        ae, tile, overlap = self.autoencoder, self.tile, self.overlap
        parts = [decode_tiled(ae, one, tile=tile, overlap=overlap) for one in latents.split(1)]
        return torch.cat(parts)


def _tile_sides(autoencoder: KLAutoencoder, tile: int | None, overlap: float) -> tuple[int, int]:
    factor = autoencoder.config.factor
    pixels = autoencoder.config.sample_size if tile is None else tile
    small = pixels // factor
    if not 0 <= overlap < 1 or int(small * (1 - overlap)) < 1:
        raise InputError(
            f"tiles need {factor} pixels a side or more and an overlap in [0, 1) that leaves "
            f"one latent, got a tile of {pixels} and an overlap of {overlap}"
        )
    return pixels, small


def _tiled(run: Callable[[Tensor], Tensor], x: Tensor, tiles: Tiles) -> Tensor:
    rows: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, x.shape[-2], tiles.stride):
        row: list[Tensor] = []
        for left in range(0, x.shape[-1], tiles.stride):
            part = run(x[..., top : top + tiles.size, left : left + tiles.size])
            if above:
                part = _blend(above[len(row)], part, tiles.blend, dim=-2)
            if row:
                part = _blend(row[-1], part, tiles.blend, dim=-1)
            row.append(part)
        rows.append(torch.cat([part[..., : tiles.kept, : tiles.kept] for part in row], dim=-1))
        above = row
    return torch.cat(rows, dim=-2)


def _blend(before: Tensor, after: Tensor, extent: int, dim: int) -> Tensor:
    """Fade linearly from the end of `before` into the start of `after`."""
    extent = min(before.shape[dim], after.shape[dim], extent)
    if extent == 0:
        return after
    shape = (-1, 1) if dim == -2 else (-1,)
    fade = (torch.arange(extent, device=after.device) / extent).to(after.dtype).view(shape)
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    start, rest = after.split([extent, after.shape[dim] - extent], dim=dim)
    return torch.cat([end * (1 - fade) + start * fade, rest], dim=dim)
