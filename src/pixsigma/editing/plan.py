"""From a request to rounds of drawing: one, or two where a picture is drawn small and refined."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps
from torch.nn import functional as F

from pixsigma.buckets import check_size, size_for_aspect
from pixsigma.editing import opening
from pixsigma.editing.canvas import Canvas, box_around, extended
from pixsigma.errors import InputError, SizeError
from pixsigma.images import to_pil
from pixsigma.shapes import Images

if TYPE_CHECKING:
    from pixsigma.requests import GenerationRequest

IMAGE_STRENGTH, MASK_STRENGTH, REFINE_STRENGTH, TILED_STRENGTH = 0.6, 1.0, 0.4, 0.2
"""Where the request says none: a picture as a whole, a masked part, the second pass, tiles: each of
these reads the whole prompt, and would draw all of it again."""

_FAR = 4
"""Times the trained area, above which a picture falls apart into repetitions."""


@dataclass(frozen=True)
class Round:
    """One way from noise to image."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    strength: float = 1.0
    """Share of the steps that are taken; below 1 they begin from a picture."""
    window: tuple[int, int] | None = None
    """(height, width) in pixels of the tiles that it is drawn in; None: all at once."""

    @property
    def seen(self) -> tuple[int, int]:
        """(height, width) in pixels that the network sees at once."""
        if self.window is None:
            return self.size
        return min(self.size[0], self.window[0]), min(self.size[1], self.window[1])

    def tile(self, factor: int) -> tuple[int, int] | None:
        """The same in latents, None where it sees all."""
        return None if self.window is None else (self.seen[0] // factor, self.seen[1] // factor)


@dataclass(frozen=True)
class Plan:
    """The rounds, and what they begin and end with."""

    rounds: tuple[Round, ...]
    canvas: Canvas | None = None

    @property
    def whole(self) -> tuple[int, int]:
        """(height, width) of what comes out, and of the hints that it follows."""
        if self.canvas is None:
            return self.rounds[-1].size
        return self.canvas.picture.height, self.canvas.picture.width

    def finished(self, images: Images) -> list[Image.Image]:
        """The last round's pictures as they were asked for."""
        return to_pil(images) if self.canvas is None else self.canvas.finished(images)


def planned(request: "GenerationRequest", native: tuple[int, int], multiple: int) -> Plan:
    """Read the pictures of a request and settle the sizes; `native` is (height, width).

    Warns where a picture is padded. Raises InputError, SizeError.
    """
    if request.image is not None:
        return _edit(request, request.image, native, multiple)
    height, width = request.height or native[0], request.width or native[1]
    check_size(width, height, multiple)
    if not request.two_pass:
        if height * width > _FAR * native[0] * native[1]:
            _warn_of_size((height, width), native, "two_pass")
        return Plan((Round((height, width)),))
    usual = TILED_STRENGTH if request.tiled else REFINE_STRENGTH
    strength = usual if request.strength is None else request.strength
    second = Round((height, width), strength, native if request.tiled else None)
    return Plan((Round(first_size(height, width, native, multiple)), second))


def first_size(height: int, width: int, native: tuple[int, int], multiple: int) -> tuple[int, int]:
    """(height, width) of the first pass: about the trained area, in the shape that was asked for.

    Raises SizeError where the asked size is no larger.
    """
    if height * width <= native[0] * native[1]:
        raise SizeError(
            f"two passes are for sizes above the {native[1]}x{native[0]} that this model was "
            f"trained on, got {width}x{height}; draw it in one"
        )
    return size_for_aspect(round(math.sqrt(native[0] * native[1])), width, height, multiple)


def covering(images: Images, size: tuple[int, int]) -> Images:
    """Enlarge until both sides cover `size` (height, width), bicubic, then cut the centre out."""
    height, width = size
    old_height, old_width = images.shape[-2:]
    if (old_height, old_width) == size:
        return images
    ratio = max(height / old_height, width / old_width)
    tall, wide = max(height, round(old_height * ratio)), max(width, round(old_width * ratio))
    scaled = F.interpolate(
        images, size=(tall, wide), mode="bicubic", align_corners=False, antialias=True
    )
    top, left = (tall - height) // 2, (wide - width) // 2
    return scaled[:, :, top : top + height, left : left + width].clamp(-1, 1)


def as_request(
    request: "GenerationRequest | str", settings: Mapping[str, Any]
) -> "GenerationRequest":
    """A request from a prompt or request and settings; pictures of PIL become data.

    Raises InputError.
    """
    from pixsigma.requests import GenerationRequest, request_from

    if not isinstance(request, str | GenerationRequest):
        raise InputError(
            f"a request is a prompt or a GenerationRequest, got a {type(request).__name__}; "
            "several are for draw_many and stream_many"
        )
    if not isinstance(request, str) and not settings:
        return request
    given: dict[str, Any] = (
        {"prompt": request} if isinstance(request, str) else request.model_dump()
    )
    given |= settings
    given = _plain(given, {"image": _rgb, "mask": opening.mask_of})
    for field, inside in {"control": {"hint": _rgb}, "regions": {"mask": opening.mask_of}}.items():
        if isinstance(given.get(field), list | tuple):
            given[field] = [_plain(each, inside) for each in given[field]]
    return request_from(**given)


def _plain(settings: Any, pictures: Mapping[str, Callable[[Image.Image], Image.Image]]) -> Any:
    """Settings as plain data, where `pictures` may be of PIL and all may be paths."""
    if not isinstance(settings, Mapping):
        return settings
    found = dict(settings)
    for field, read in pictures.items():
        if isinstance(found.get(field), Image.Image):
            found[field] = opening.as_data(read(found[field]))
    return found | {k: str(v) for k, v in found.items() if isinstance(v, Path)}


def _rgb(image: Image.Image) -> Image.Image:
    return opening.flattened(image, ground="white")


def _edit(
    request: "GenerationRequest", source: str, native: tuple[int, int], multiple: int
) -> Plan:
    picture = opening.open_picture(source)
    mask = opening.open_mask(request.mask) if request.mask is not None else None
    if mask is not None and mask.size != picture.size:
        raise SizeError(
            f"a mask has the size of its picture, {picture.width}x{picture.height}, "
            f"got {mask.width}x{mask.height}"
        )
    if request.width and request.height:
        size = request.width, request.height
        opening.check_pixels(size, "the size that was asked for")
        picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
        mask = ImageOps.fit(mask, size, Image.Resampling.BILINEAR) if mask else None
    if mask is not None and mask.getbbox() is None:
        raise InputError("the mask is black everywhere: paint white what is to be drawn anew")
    if request.extend:
        picture, mask = extended(picture, mask, request.extend)
    box = (0, 0, *picture.size)
    if request.inpaint_crop and mask is not None:
        box = box_around(mask, native, multiple)
    canvas = Canvas(picture=picture, mask=mask, box=box, multiple=multiple)
    _tell(canvas, native, request.tiled)
    usual = TILED_STRENGTH if request.tiled else IMAGE_STRENGTH
    usual = usual if mask is None else MASK_STRENGTH
    strength = usual if request.strength is None else request.strength
    return Plan((Round(canvas.size, strength, native if request.tiled else None),), canvas)


def _tell(canvas: Canvas, native: tuple[int, int], tiled: bool) -> None:
    left, top, right, bottom = canvas.box
    height, width = canvas.size
    if canvas.padded:
        warnings.warn(
            f"{right - left}x{bottom - top} is no multiple of {canvas.multiple}: drawn as "
            f"{width}x{height} with the last pixels repeated, and cut back",
            stacklevel=5,
        )
    if height * width > _FAR * native[0] * native[1] and not tiled:
        _warn_of_size((height, width), native, "tiled or, with a mask, inpaint_crop")


def _warn_of_size(size: tuple[int, int], native: tuple[int, int], better: str) -> None:
    warnings.warn(
        f"{size[1]}x{size[0]} is far above the {native[1]}x{native[0]} that this model was trained "
        f"on, and may fall apart into repetitions: a smaller size or {better} would do better",
        stacklevel=6,
    )
