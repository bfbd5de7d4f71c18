"""Tensors to pictures, and pictures to files that say how they were drawn."""

import os
import re
import secrets
import struct
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixsigma.errors import InputError, OutputError
from pixsigma.provenance import KINDS, MADE, embedded, save_options
from pixsigma.shapes import Images, Latents
from pixsigma.signing import Signer, credentials

_LONGEST_STEM = 80

UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)
"""What PIL raises for files that are no pictures."""


# Tensors


def to_numpy(images: Images) -> NDArray[np.float32]:
    """(B, height, width, 3) in [0, 1], clamped."""
    array: NDArray[np.float32] = to_unit(images.float()).permute(0, 2, 3, 1).cpu().numpy()
    return array


def signed(picture: Image.Image) -> Images:
    """A picture as (1, 3, height, width) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


def to_pil(images: Images) -> list[Image.Image]:
    """One 8-bit picture a row; halves are rounded to even, as in diffusers."""
    pixels = (to_numpy(images) * 255).round().astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def to_unit(images: Images) -> Images:
    """(B, 3, height, width) in [0, 1], clamped."""
    return (images / 2 + 0.5).clamp(0, 1)


def resize_and_crop(images: Images, height: int, width: int) -> Images:
    """Scale until both sides cover the target, bilinear, then cut the centre out.

    What diffusers' `PixArtImageProcessor.resize_and_crop_tensor` means; the result always has the
    size asked for, where rounding down loses diffusers a pixel now and then.
    """
    old_height, old_width = images.shape[-2:]
    if (old_height, old_width) == (height, width):
        return images
    ratio = max(height / old_height, width / old_width)
    tall, wide = max(height, int(old_height * ratio)), max(width, int(old_width * ratio))
    scaled = F.interpolate(images, size=(tall, wide), mode="bilinear", align_corners=False)
    top, left = (tall - height) // 2, (wide - width) // 2
    return scaled[:, :, top : top + height, left : left + width]


def preview(latents: Latents, matrix: Tensor) -> Image.Image:
    """A rough, small picture of the first latents (B, C, H, W): one matrix product, no autoencoder.

    `matrix` is (C, 3), or (C + 1, 3) with the bias in its last row.
    """
    channels = latents.shape[1]
    if tuple(matrix.shape) not in {(channels, 3), (channels + 1, 3)}:
        raise InputError(
            f"a preview matrix for {channels} channels must be ({channels}, 3) or "
            f"({channels + 1}, 3), got {tuple(matrix.shape)}"
        )
    matrix = matrix.to(latents.device, torch.float32)
    mixed = torch.einsum("bchw,cd->bdhw", latents[:1].float(), matrix[:channels])
    return to_pil(mixed + matrix[channels:].sum(0)[:, None, None])[0]


# Files


def slug(text: str, longest: int = _LONGEST_STEM) -> str:
    """ASCII letters, digits and dashes that tell the prompt; `picture` where nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    if len(words) > longest:
        words = words[: longest + 1].rpartition("-")[0] or words[:longest]
    return words or "picture"


def picture_stem(prompt: str, seed: int) -> str:
    """The name of a picture's file, without folder and ending."""
    return f"{slug(prompt)}-{seed}"


def write_picture(
    image: Image.Image,
    folder: Path,
    stem: str,
    settings: Mapping[str, Any] | None,
    *,
    suffix: str = ".png",
    source_type: str = MADE,
    signer: Signer | None = None,
) -> Path:
    """Write `folder/stem.png` whole or not at all, with its settings inside; return its path.

    `suffix` is one of `provenance.KINDS`, `source_type` IPTC's term that marks the picture as made
    by a model; settings of None are left out. A `signer` adds a C2PA manifest. A name that is taken
    gets a counter (`stem-2.png`), also when another process takes it at this moment: no file is
    ever overwritten. Raises OutputError when the folder cannot be written or the format holds no
    such picture, InputError for another ending and where the signer cannot sign.
    """
    kind = kind_of(suffix)
    size = {"width": image.width, "height": image.height}
    options = save_options(kind, settings, size, source_type)
    temporary = folder / f".{secrets.token_hex(8)}{suffix}.part"
    try:
        with temporary.open("xb") as file:
            image.save(file, kind, **options)
        if signer is not None:
            title = f"{stem}{suffix}"
            content = signer.signed(temporary.read_bytes(), kind, source_type, title)
            temporary.write_bytes(content)
        return _publish(temporary, folder, stem, suffix)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write a picture to {folder} as {kind}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def kind_of(suffix: str) -> str:
    """The format of a file with this ending; raises InputError."""
    if suffix.lower() not in KINDS:
        raise InputError(f"pictures are {', '.join(KINDS)} files, got {suffix or 'no ending'}")
    return KINDS[suffix.lower()]


def check_writable(folder: Path) -> None:
    """Make the folder and write a byte to it; raises OutputError before any drawing is lost."""
    probe = folder / f".{secrets.token_hex(8)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"the folder {folder} cannot be written ({error.strerror}); give another with --out"
        ) from error


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that were put into a picture; raises InputError where there are none."""
    settings, _ = read_provenance(path)
    if settings is None:
        raise InputError(f"{path} holds no settings; pixsigma writes them into its own pictures")
    return settings


def read_provenance(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The settings inside a picture and IPTC's term for its source, None where it has none.

    Raises InputError for what is no picture and for damaged settings.
    """
    try:
        with Image.open(path, formats=sorted(set(KINDS.values()))) as image:
            image.load()
            return embedded(image)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as a picture: {error}") from error


def read_credentials(path: Path) -> dict[str, Any] | None:
    """Who signed a picture of ours and whether that holds, None for nobody; see `signing`.

    Raises InputError, and MissingExtraError where there is a manifest and nothing to read it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return credentials(content, kind_of(path.suffix))


def _publish(temporary: Path, folder: Path, stem: str, suffix: str) -> Path:
    count = 1
    while True:
        target = folder / (f"{stem}{suffix}" if count == 1 else f"{stem}-{count}{suffix}")
        try:
            _claim(temporary, target)
        except FileExistsError:
            count += 1
        else:
            return target


def _claim(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        # FAT and some network shares have no hard links: reserve the name, then move over it.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        temporary.replace(target)
