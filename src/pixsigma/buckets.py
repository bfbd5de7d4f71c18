"""Picture sizes: the aspect-ratio tables that PixArt was trained on, and sizes near a wish.

A table maps a ratio (height / width, rounded, as published) to (height, width) in pixels. Source:
`ASPECT_RATIO_*` of the authors' `diffusion/data/datasets/utils.py`; diffusers' `*_BIN` tables are
subsets of them. The tables for 256, 512, 1024 and 2048 are one table at four scales.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from pixsigma.errors import SizeError

AspectTable: TypeAlias = Mapping[str, tuple[int, int]]
"""Published ratio (height / width) to (height, width) in pixels, in the published order."""

# ratio:height,width in tiles of 16 pixels, for pictures of about 256 x 256
_BASE = """
0.25:8,32 0.26:8,31 0.27:8,30 0.28:8,29 0.32:9,28 0.33:9,27 0.35:9,26 0.4:10,25 0.42:10,24
0.48:11,23 0.5:11,22 0.52:11,21 0.57:12,21 0.6:12,20 0.68:13,19 0.72:13,18 0.78:14,18 0.82:14,17
0.88:15,17 0.94:15,16 1.0:16,16 1.07:16,15 1.13:17,15 1.21:17,14 1.29:18,14 1.38:18,13 1.46:19,13
1.67:20,12 1.75:21,12 2.0:22,11 2.09:23,11 2.4:24,10 2.5:25,10 2.89:26,9 3.0:27,9 3.11:28,9
3.62:29,8 3.75:30,8 3.88:31,8 4.0:32,8
"""

# the same in tiles of 64 pixels, for pictures of about 2880 x 2880: what the paper calls 4K
_BASE_2880 = """
0.25:22,90 0.26:22,87 0.27:22,84 0.28:22,81 0.32:25,78 0.33:25,75 0.34:25,73 0.4:28,70 0.42:28,67
0.47:30,64 0.49:30,61 0.51:30,59 0.55:33,60 0.59:33,56 0.68:36,53 0.72:36,50 0.78:39,50 0.83:39,47
0.89:42,47 0.93:42,45 1.0:45,45 1.07:45,42 1.12:47,42 1.21:47,39 1.28:50,39 1.39:50,36 1.47:53,36
1.7:56,33 1.82:60,33 2.03:61,30 2.13:64,30 2.39:67,28 2.5:70,28 2.92:73,25 3.0:75,25 3.12:78,25
3.68:81,22 3.82:84,22 3.95:87,22 4.0:90,22
"""

_LEFT_OUT = frozenset({"0.26", "0.27", "2.89", "3.11", "3.62", "3.75", "3.88"})
_LEFT_OUT_2048 = frozenset({"0.27", "0.28", "2.89", "3.11", "3.62", "3.75", "3.88"})


def _table(text: str, pixels: int, without: frozenset[str] = frozenset()) -> AspectTable:
    entries = (entry.split(":") for entry in text.split())
    sides = ((ratio, tiles.split(",")) for ratio, tiles in entries if ratio not in without)
    return MappingProxyType({r: (int(h) * pixels, int(w) * pixels) for r, (h, w) in sides})


ASPECT_RATIOS: Mapping[int, AspectTable] = MappingProxyType(
    {
        256: _table(_BASE, 16),
        512: _table(_BASE, 32),
        1024: _table(_BASE, 64),
        2048: _table(_BASE, 128),
        2880: _table(_BASE_2880, 64),
    }
)
"""Native side in pixels to its full table of 40 sizes."""

ASPECT_RATIOS_TEST: Mapping[int, AspectTable] = MappingProxyType(
    {
        256: _table(_BASE, 16, _LEFT_OUT),
        512: _table(_BASE, 32, _LEFT_OUT),
        1024: _table(_BASE, 64, _LEFT_OUT),
        2048: _table(_BASE, 128, _LEFT_OUT_2048),
        # Published under this name, though its pictures have the area of 4096 x 4096.
        2880: _table(_BASE, 256, _LEFT_OUT_2048),
    }
)
"""Native side in pixels to the 33 sizes that the authors draw samples at."""


def nearest_ratio(table: AspectTable, height: int, width: int) -> str:
    """The table's ratio nearest to height / width, by linear distance; of equals the first."""
    if height < 1 or width < 1:
        raise SizeError(f"height and width must be 1 or more, got {height} and {width}")
    wanted = height / width
    return min(table, key=lambda ratio: abs(float(ratio) - wanted))


def nearest(table: AspectTable, height: int, width: int) -> tuple[int, int]:
    """The table's (height, width) whose ratio is nearest to height / width."""
    return table[nearest_ratio(table, height, width)]


def bin_table(sample_size: int, factor: int = 8) -> AspectTable:
    """The table that `use_resolution_binning` reads for a model of `sample_size` latents a side.

    As diffusers: the authors' sampling sizes for 256, 512 and 1024, all 40 sizes for 2048. Raises
    SizeError for a model of another side.
    """
    side = sample_size * factor
    if side == 2048:
        return ASPECT_RATIOS[2048]
    if side in (256, 512, 1024):
        return ASPECT_RATIOS_TEST[side]
    raise SizeError(
        f"resolution binning knows models of 256, 512, 1024 and 2048 pixels, this one has "
        f"{side}; pass use_resolution_binning=False and the size itself"
    )


def size_for_aspect(side: int, width: float, height: float, multiple: int = 16) -> tuple[int, int]:
    """The (height, width) for the aspect `width:height` at a model's native `side` in pixels.

    A size that the model was trained on where `side` has a table of such multiples, else one of
    about `side`² pixels. Raises SizeError beyond 1:4 and 4:1, where no model was trained.
    """
    if not (width > 0 and height > 0 and 0.25 <= height / width <= 4):
        raise SizeError(f"the aspect must lie between 1:4 and 4:1, got {width:g}:{height:g}")
    ratio = height / width
    if table := _published(side, multiple):
        return table[min(table, key=lambda key: abs(float(key) - ratio))]
    tall, wide = side * math.sqrt(ratio), side / math.sqrt(ratio)
    return _rounded(tall, multiple), _rounded(wide, multiple)


def asked_multiple(multiple: int) -> int:
    """What sides are multiples of where requests (16) and a model's own multiple hold."""
    return math.lcm(16, multiple)


def training_table(side: int, *, square: bool = False, multiple: int = 16) -> AspectTable:
    """The sizes that pictures are brought to for training at a native `side` in pixels.

    The published table where there is one, else sizes of about `side`² pixels with the same
    ratios; `square` leaves one. Raises SizeError for a side that is no multiple.
    """
    check_size(side, side, multiple)
    if square:
        return MappingProxyType({"1.0": (side, side)})
    if table := _published(side, multiple):
        return table
    sizes = {size_for_aspect(side, 1, float(ratio), multiple) for ratio in ASPECT_RATIOS[256]}
    return MappingProxyType({f"{h / w:.4g}": (h, w) for h, w in sorted(sizes, key=_shape)})


def _published(side: int, multiple: int) -> AspectTable:
    """The published sizes at a native side; empty where there are none or not all are multiples."""
    table = ASPECT_RATIOS.get(side, {})
    fits = all(h % multiple == 0 == w % multiple for h, w in table.values())
    return table if fits else {}


def nearest_valid_sizes(width: int, height: int, multiple: int = 16) -> list[tuple[int, int]]:
    """The (width, height) pairs around a wish whose sides are multiples, nearest first."""
    pairs = {(w, h) for w in _neighbours(width, multiple) for h in _neighbours(height, multiple)}
    return sorted(pairs, key=lambda pair: (math.dist(pair, (width, height)), pair))


def check_size(width: int, height: int, multiple: int = 16) -> None:
    """Raise SizeError, naming the nearest valid sizes, unless both sides are multiples."""
    if min(width, height) >= multiple and width % multiple == 0 and height % multiple == 0:
        return
    near = nearest_valid_sizes(width, height, multiple)
    named = " or ".join(f"{w}x{h}" for w, h in near[:2])
    raise SizeError(
        f"width and height must be multiples of {multiple}, got {width}x{height}; nearest: {named}"
    )


def _shape(size: tuple[int, int]) -> tuple[float, int]:
    return size[0] / size[1], size[0]


def _neighbours(side: int, multiple: int) -> set[int]:
    below = side // multiple * multiple
    above = below if side == below else below + multiple
    return {max(multiple, below), max(multiple, above)}


def _rounded(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)
