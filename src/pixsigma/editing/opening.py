"""Pictures from files, data URIs or PIL, made 8-bit RGB; what cannot be taken is told, not bent."""

import base64
import binascii
import hashlib
import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pixsigma.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read. PIL knows more, among them formats that start other programs (EPS)."""

MOST_PIXELS = 2**26
"""Pixels that an input may have: 8192 x 8192. Checked in the header, before anything is decoded."""

_DATA = "data:"

_NEARLY = 8

_DAMAGED = (OSError, ValueError, SyntaxError, TypeError, struct.error)
"""What PIL raises for bytes that are no picture, or no EXIF."""


def open_picture(source: str) -> Image.Image:
    """RGB from a path or a `data:image/…;base64,…` URI; transparency is laid on white.

    The orientation in EXIF is applied. Warns of transparency and of frames that are left out.
    Raises InputError for what is no picture, is damaged or has over `MOST_PIXELS` pixels.
    """
    return flattened(_opened(source), ground="white")


def open_mask(source: str) -> Image.Image:
    """Grey (`L`) from the same sources: white is drawn anew, black and transparent are kept."""
    return mask_of(_opened(source))


def mask_of(image: Image.Image) -> Image.Image:
    """A picture as a mask, in grey; what is nearly black or white is, as JPEG blurs them."""
    grey = flattened(image, ground="black").convert("L")
    return grey.point([0 if v < _NEARLY else 255 if v > 255 - _NEARLY else v for v in range(256)])


def as_data(image: Image.Image) -> str:
    """A picture as a PNG in a data URI, so that a request stays plain data."""
    check_pixels(image.size, "the picture")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"{_DATA}image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def is_data(source: str) -> bool:
    """Whether the picture itself is in the string, and not its path."""
    return source.startswith(_DATA)


def fingerprint(source: str) -> str:
    """SHA-256 of the file, in hex; raises InputError where it cannot be read."""
    try:
        with _file(source) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {shown(source)}: {reason}") from error


def shortened(source: str) -> str:
    """The path, or `data:` alone where the picture itself is in the string."""
    return _DATA if is_data(source) else source


def shown(source: str) -> str:
    """The source as a message names it."""
    return "the picture in the request" if is_data(source) else source


def flattened(image: Image.Image, ground: str) -> Image.Image:
    """Any mode of PIL as RGB, upright; what shows through is laid on `ground`.

    Raises InputError for floating point, which has no known range.
    """
    check_pixels(image.size, "the picture")
    try:
        image = ImageOps.exif_transpose(image)
    except _DAMAGED as error:
        warnings.warn(
            f"the picture's EXIF is damaged, it is taken as it lies: {error}", stacklevel=2
        )
    if image.mode == "F":
        raise InputError("a picture of floating-point values has no known range; give 8 or 16 bits")
    if image.mode in ("La", "RGBa"):  # of these PIL knows only this one way
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode.startswith("I"):
        # PIL would clip 16 bits to 8 instead of scaling them
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    lowest, _ = layered.getchannel("A").getextrema()
    if lowest != 255 and ground == "white":
        warnings.warn("the picture is transparent in places: it is laid on white", stacklevel=2)
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), layered).convert("RGB")


def check_pixels(size: tuple[int, int], what: str) -> None:
    """Raise InputError for more than `MOST_PIXELS`, or none."""
    if not all(size):
        raise InputError(f"a picture has pixels, {what} is {size[0]}x{size[1]}")
    if size[0] * size[1] > MOST_PIXELS:
        raise InputError(
            f"a picture may have {MOST_PIXELS:,} pixels, {what} has {size[0]}x{size[1]}; "
            "make it smaller first"
        )


def _opened(source: str) -> Image.Image:
    name = shown(source)
    try:
        with _file(source) as file:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = Image.open(file, formats=FORMATS)
            check_pixels(image.size, name)
            frames = getattr(image, "n_frames", 1)
            image.load()
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"a picture may have {MOST_PIXELS:,} pixels: {name}: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} cannot be read as a picture: it is none of {', '.join(FORMATS)}"
        ) from error
    except (*_DAMAGED, EOFError) as error:
        raise InputError(f"{name} cannot be read as a picture: {error}") from error
    if frames > 1 and image.format != "MPO":  # telephones put previews behind the picture
        warnings.warn(f"{name} has {frames} frames: the first is taken", stacklevel=3)
    return image


def _file(source: str) -> io.BufferedReader | io.BytesIO:
    if not is_data(source):
        return Path(source).open("rb")
    kind, comma, text = source.partition(",")
    if not comma or not kind.endswith(";base64"):
        raise InputError(f"a picture as data is 'data:image/png;base64,…', got {kind[:60]!r}")
    try:
        return io.BytesIO(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InputError(f"the picture in the request is no base64: {error}") from error
