"""The things in a picture on a plain ground: colour segmentation and connected components."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pixsigma.evaluation.features import Array, on_white

SIDE = 128
"""Pixels a side of what is segmented, whatever the drawing's size."""
CROP = 64
"""Things are cut out at this size, so that small and large ones are looked at alike."""

STANDS_OUT = 0.16
"""Distance from the ground (of RGB in [0, 1]) from which on a pixel belongs to a thing."""
SMALLEST = 0.008
"""Share of the picture below which a component is a speck."""
SPECK = 0.10
"""Share of the largest component below which another is a part that came off."""
BRIDGE = 1
"""Pixels that parts of one thing may lie apart on each side."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One component: its mask (128, 128) and the picture it was found in (128, 128, 3)."""

    mask: Array
    pixels: Array

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels of 128, the last two exclusive."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def middle(self) -> tuple[float, float]:
        """x and y of the box's middle as parts of the side."""
        left, top, right, bottom = self.box
        return (left + right) / 2 / SIDE, (top + bottom) / 2 / SIDE

    def crop(self) -> Image.Image:
        """The thing alone on white, its box filling a square of 64 px but for a margin."""
        left, top, right, bottom = self.box
        shown = np.where(self.mask[..., None], self.pixels, 255)[top:bottom, left:right]
        side = round(max(shown.shape[:2]) * 1.1)
        square = Image.new("RGB", (side, side), "white")
        corner = ((side - (right - left)) // 2, (side - (bottom - top)) // 2)
        square.paste(Image.fromarray(shown.astype(np.uint8)), corner)
        return square.resize((CROP, CROP), Image.Resampling.BICUBIC)

    def cut(self, at: float, axis: int) -> "tuple[Segment, Segment] | None":
        """The parts before and after `at` of the box's height (axis 0) or width (axis 1).

        None where a part would be a speck.
        """
        left, top, right, bottom = self.box
        first, last = (top, bottom) if axis == 0 else (left, right)
        before = np.arange(SIDE) < first + at * (last - first)
        side = before[:, None] if axis == 0 else before[None, :]
        parts = self.mask & side, self.mask & ~side
        if min(part.sum() for part in parts) < SMALLEST * SIDE**2:
            return None
        a, b = (Segment(mask=part, pixels=self.pixels) for part in parts)
        return a, b


def segments(picture: Image.Image) -> list[Segment]:
    """The things that stand out of the ground, the largest first.

    The ground is the median colour of the border; a picture without a plain ground comes out as
    one large segment or many, which is no thing that was asked.
    """
    # Enlarged smoothly, since the steps of coarse pixels look like nothing in the references.
    how = Image.Resampling.BOX if min(picture.size) >= SIDE else Image.Resampling.BICUBIC
    small = on_white(picture).resize((SIDE, SIDE), how)
    pixels = np.asarray(small, dtype=np.float32)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.linalg.norm(pixels - np.median(edge, axis=0), axis=2) / 255
    solid = distance > STANDS_OUT
    labels = label(_grown(solid, BRIDGE))
    masks = [solid & (labels == i) for i in range(1, int(labels.max()) + 1)]
    masks.sort(key=lambda mask: -int(mask.sum()))
    least = max(SMALLEST * SIDE**2, SPECK * masks[0].sum()) if masks else 0
    return [Segment(mask=mask, pixels=pixels) for mask in masks if mask.sum() >= least]


def _grown(mask: Array, by: int) -> Array:
    """The mask with `by` pixels more on each side."""
    wide = np.pad(mask, by)
    height, width = mask.shape
    shifts = range(2 * by + 1)
    parts = [wide[y : y + height, x : x + width] for y in shifts for x in shifts]
    return np.logical_or.reduce(parts)


def label(mask: Array) -> Array:
    """Connected components (4 neighbours) of a mask (H, W), numbered from 1, 0 outside.

    Every pixel takes the largest number along its run in rows, then in columns, until nothing
    changes: as many rounds as the most winding component has bends.
    """
    numbers = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = _spread(_spread(numbers, mask).T, mask.T).T
        if (spread == numbers).all():
            break
        numbers = spread
    kinds = np.unique(numbers[mask])
    found: Array = np.where(mask, np.searchsorted(kinds, numbers) + 1, 0)
    return found


def _spread(numbers: Array, mask: Array) -> Array:
    """The largest number of each horizontal run of the mask, over the whole run."""
    edges = np.pad(mask, ((0, 0), (1, 0)))
    starts = mask & ~edges[:, :-1]
    run = np.cumsum(starts.ravel()).reshape(mask.shape)
    largest = np.zeros(int(run.max()) + 1, dtype=numbers.dtype)
    np.maximum.at(largest, run[mask], numbers[mask])
    return np.where(mask, largest[run], 0)


# Colours

GREYS = ("black", "grey", "white")

HUES = (
    (0.040, "red"),
    (0.115, "orange"),
    (0.185, "yellow"),
    (0.455, "green"),
    (0.700, "blue"),
    (0.815, "purple"),
    (0.945, "pink"),
    (1.001, "red"),
)
"""Upper ends of the hues (of 1) that have a name."""

COLOURS = (*GREYS, *dict.fromkeys(name for _, name in HUES))
"""Every name that a colour can have."""


def named_colours(pixels: Array) -> Array:
    """The name of each colour (n, 3) in [0, 255]: GREYS by lightness, the others by hue."""
    top, bottom = pixels.max(axis=1), pixels.min(axis=1)
    chroma = (top - bottom) / 255
    saturation = chroma / np.maximum(top / 255, 1e-6)
    hue = _hues(pixels, top, top - bottom)
    names = np.array([name for _, name in HUES])
    found = names[np.searchsorted([end for end, _ in HUES], hue, side="right")]
    pale = (found == "red") & (saturation < 0.5) & (top > 190)
    found = np.where(pale, "pink", found)
    grey = np.where(top < 85, "black", np.where(bottom > 205, "white", "grey"))
    colourless = (chroma < 0.10) | (saturation < 0.16) | (top < 50)
    named: Array = np.where(colourless, grey, found)
    return named


def _hues(pixels: Array, top: Array, chroma: Array) -> Array:
    red, green, blue = pixels.T
    safe = np.maximum(chroma, 1e-6)
    by_channel = [((green - blue) / safe) % 6, (blue - red) / safe + 2, (red - green) / safe + 4]
    found: Array = np.choose(pixels.argmax(axis=1), by_channel) / 6
    return np.clip(found, 0, 1)


def colour_shares(segment: Segment) -> dict[str, float]:
    """Share of a segment's pixels by the name of their colour, the largest first."""
    names, counts = np.unique(named_colours(segment.pixels[segment.mask]), return_counts=True)
    ordered = sorted(zip(counts.tolist(), names.tolist(), strict=True), reverse=True)
    return {name: count / int(counts.sum()) for count, name in ordered}


def has_colour(segment: Segment, colour: str) -> bool:
    """Whether a colour is the segment's own: the largest share, greys aside where it is none.

    Highlights, outlines and shadows are grey or nearly so, which is why they do not count against
    a hue; a thing is not of a hue that a fourth of it has.
    """
    found = colour_shares(segment)
    if colour in GREYS:
        return next(iter(found)) == colour
    hues = {name: share for name, share in found.items() if name not in GREYS}
    return bool(hues) and next(iter(hues)) == colour and hues[colour] >= 0.25
