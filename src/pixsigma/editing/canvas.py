"""The picture that is edited: its canvas, its mask, the part that is worked on, and back again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixsigma.editing.opening import check_pixels
from pixsigma.images import signed, to_pil
from pixsigma.shapes import Images

Box: TypeAlias = tuple[int, int, int, int]
"""left, top, right, bottom in pixels, as PIL has it."""

MARGIN = 64
"""Pixels around a mask that a crop takes in at least, for the model to see what it continues."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A picture, what of it is drawn anew, and the box that the model sees."""

    picture: Image.Image
    """RGB."""
    mask: Image.Image | None
    """L, of the same size: 255 is drawn anew, 0 is kept to the last bit. None draws all."""
    box: Box
    multiple: int
    """What the sides of a drawing are multiples of."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the drawing: the box, rounded up."""
        left, top, right, bottom = self.box
        return _up(bottom - top, self.multiple), _up(right - left, self.multiple)

    @property
    def padded(self) -> bool:
        """Whether the drawing is larger than its box."""
        left, top, right, bottom = self.box
        return self.size != (bottom - top, right - left)

    def source(self) -> Images:
        """(1, 3, height, width): the box, its last rows and columns repeated up to `size`."""
        return self.filled(signed(self.picture.crop(self.box)))

    def shown_of(self, picture: Image.Image) -> Image.Image:
        """What the box shows of another picture, scaled to this one's size."""
        if picture.size != self.picture.size:
            picture = picture.resize(self.picture.size, Image.Resampling.LANCZOS)
        return picture.crop(self.box)

    def latent_mask(self, factor: int) -> Tensor | None:
        """(1, 1, H, W): 1 for every latent under which a pixel is to change, else 0."""
        if self.mask is None:
            return None
        pixels = torch.from_numpy(np.array(self.mask.crop(self.box)))[None, None].float()
        return F.max_pool2d((self.filled(pixels) > 0).float(), factor)

    def finished(self, images: Images) -> list[Image.Image]:
        """The drawings cut to their box and laid into the picture through the mask."""
        left, top, right, bottom = self.box
        drawings = [image.crop((0, 0, right - left, bottom - top)) for image in to_pil(images)]
        return drawings if self.mask is None else [self._laid_in(each) for each in drawings]

    def _laid_in(self, drawing: Image.Image) -> Image.Image:
        assert self.mask is not None
        old = np.array(self.picture)
        left, top, right, bottom = self.box
        part = old[top:bottom, left:right]
        share = np.array(self.mask.crop(self.box), dtype=np.float32)[..., None] / 255
        mixed = share * np.asarray(drawing, np.float32) + (1 - share) * part
        old[top:bottom, left:right] = np.where(share > 0, mixed.round().astype(np.uint8), part)
        return Image.fromarray(old)

    def filled(self, pixels: Tensor) -> Tensor:
        """(1, C, …) of the box to (1, C, height, width) of the drawing, as `source` has it."""
        height, width = self.size
        down, right = height - pixels.shape[-2], width - pixels.shape[-1]
        return F.pad(pixels, (0, right, 0, down), mode="replicate")


def extended(
    picture: Image.Image, mask: Image.Image | None, sides: Mapping[Any, int]
) -> tuple[Image.Image, Image.Image]:
    """The picture on a larger canvas, its edges repeated, and the mask of what is new.

    A mask that was given keeps its place. Raises InputError for a canvas that is too large.
    """
    left, right, top, bottom = (sides.get(k, 0) for k in ("left", "right", "top", "bottom"))
    check_pixels((left + picture.width + right, top + picture.height + bottom), "the canvas")
    rows = ((top, bottom), (left, right))
    pixels = np.pad(np.asarray(picture), (*rows, (0, 0)), mode="edge")
    old = np.zeros(picture.size[::-1], np.uint8) if mask is None else np.asarray(mask)
    return Image.fromarray(pixels), Image.fromarray(np.pad(old, rows, constant_values=255))


def box_around(mask: Image.Image, native: tuple[int, int], multiple: int) -> Box:
    """A box around what the mask marks, with a margin, at least of the `native` (height, width).

    It stays inside the picture, and its sides are multiples where the picture has the room.
    """
    found = mask.getbbox()
    assert found is not None, "an empty mask is refused before"
    left, right = _stretch(found[0], found[2], native[1], mask.width, multiple)
    top, bottom = _stretch(found[1], found[3], native[0], mask.height, multiple)
    return left, top, right, bottom


def _stretch(low: int, high: int, native: int, whole: int, multiple: int) -> tuple[int, int]:
    length = _up(max(high - low + 2 * MARGIN, native), multiple)
    if length >= whole:
        return 0, whole
    start = min(max(0, (low + high - length) // 2), whole - length)
    return start, start + length


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
