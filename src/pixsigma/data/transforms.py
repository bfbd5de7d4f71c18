"""A picture's file to pixels of a bucket: scaled to cover it, the centre cut out, never stretched.

No torch here: worker processes import this, and torch takes them seconds.
"""

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FINE_FROM = 2048
"""Native side in pixels from which the authors scale with LANCZOS in place of BICUBIC."""


class PictureError(ValueError):
    """A file that cannot be read as a picture; the message says why. Never leaves `prepare`."""


def open_picture(data: bytes) -> Image.Image:
    """Decode all of it, turned upright as EXIF says, in RGB; transparency is laid over white.

    Of an animation the first picture. Raises PictureError.
    """
    try:
        with warnings.catch_warnings():
            # of large pictures and odd metadata Pillow only warns; an error is what counts here
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
    except PictureError:
        raise
    # damaged files make Pillow's decoders raise almost anything
    except Exception as error:
        raise PictureError(f"{type(error).__name__}: {error}") from error


def cover_size(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """The smallest (height, width) of the same shape that covers the target, as the authors'."""
    if to_height / height > to_width / width:
        return to_height, max(to_width, int(width * to_height / height))
    return max(to_height, int(height * to_width / width)), to_width


def cover_and_crop(
    image: Image.Image, height: int, width: int, *, fine: bool = False
) -> Image.Image:
    """Scale until both sides cover the target, BICUBIC or LANCZOS (`fine`), cut out the centre."""
    tall, wide = cover_size(image.height, image.width, height, width)
    how = Image.Resampling.LANCZOS if fine else Image.Resampling.BICUBIC
    scaled = image if image.size == (wide, tall) else image.resize((wide, tall), how)
    # halves are rounded to even, as torchvision's CenterCrop does
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    return scaled.crop((left, top, left + width, top + height))


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """(height, width, 3)."""
    return np.asarray(image, dtype=np.uint8).copy()


def mask_of(
    image: Image.Image, height: int, width: int, factor: int, *, fine: bool = False
) -> NDArray[np.float32]:
    """A picture's mask as its latents have it: (1, height / factor, width / factor) in [0, 1]."""
    whole = cover_and_crop(image, height, width, fine=fine).convert("L")
    small = whole.resize((width // factor, height // factor), Image.Resampling.BOX)
    return (np.asarray(small, dtype=np.float32)[None] / 255).astype(np.float32)


def _rgb(image: Any) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits where it should scale them
        wide = np.asarray(image).astype(np.uint16)
        return Image.fromarray((wide // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise PictureError(f"pixels of mode {image.mode} have no defined white: save it as PNG")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    rgb: Image.Image = image.convert("RGB")
    return rgb
