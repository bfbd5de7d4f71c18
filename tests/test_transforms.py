"""Files to pixels: upright, covering, cut from the centre, never stretched."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixsigma.buckets import training_table
from pixsigma.data.transforms import (
    PictureError,
    cover_and_crop,
    cover_size,
    open_picture,
    to_array,
)
from pixsigma.errors import SizeError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@given(*[st.integers(1, 3000)] * 4)
def test_covering_is_tight_and_keeps_the_shape(h: int, w: int, to_h: int, to_w: int) -> None:
    tall, wide = cover_size(h, w, to_h, to_w)
    assert tall >= to_h
    assert wide >= to_w
    assert (tall, wide) == (to_h, wide) or (tall, wide) == (tall, to_w)
    scale = max(to_h / h, to_w / w)
    assert abs(tall - h * scale) <= 1
    assert abs(wide - w * scale) <= 1


def test_a_wide_picture_loses_its_sides_and_is_not_stretched() -> None:
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80] = 255
    square = to_array(cover_and_crop(Image.fromarray(pixels), 40, 40))
    assert square.shape == (40, 40, 3)
    assert (square == 255).all()


def test_large_tables_use_lanczos() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (90, 90, 3), dtype=np.uint8))
    plain, fine = (to_array(cover_and_crop(image, 32, 32, fine=fine)) for fine in (False, True))
    assert np.array_equal(plain, np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)))
    assert np.array_equal(fine, np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS)))


def test_the_orientation_of_cameras_is_honoured() -> None:
    image = Image.new("RGB", (30, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise when shown
    assert open_picture(encoded(image, "JPEG", exif=exif)).size == (20, 30)
    assert open_picture(encoded(image, "JPEG")).size == (30, 20)


def test_transparency_is_white_and_16_bits_are_scaled() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert open_picture(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((4, 4), 257 * 100, np.uint16))
    assert open_picture(encoded(deep)).getpixel((0, 0)) == (100, 100, 100)
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).convert("P")
    assert open_picture(encoded(palette)).mode == "RGB"


def test_damaged_files_say_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = encoded(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")
    for data in (b"", b"no picture", whole[: len(whole) // 2]):
        with pytest.raises(PictureError):
            open_picture(data)
    with pytest.raises(PictureError, match="mode F"):
        open_picture(encoded(Image.new("F", (4, 4)), "TIFF"))


def test_training_tables() -> None:
    assert training_table(512)["0.25"] == (256, 1024)
    assert dict(training_table(256, square=True)) == {"1.0": (256, 256)}
    small = training_table(64)
    sizes = list(small.values())
    assert (64, 64) in sizes
    assert len(set(sizes)) == len(sizes)
    assert all(h % 16 == 0 and w % 16 == 0 for h, w in sizes)
    assert sorted(sizes, key=lambda s: s[0] / s[1]) == sizes
    coarse = training_table(256, multiple=32)
    assert (256, 256) in coarse.values() and len(coarse) > 5
    assert all(h % 32 == 0 and w % 32 == 0 for h, w in coarse.values())
    with pytest.raises(SizeError):
        training_table(48, multiple=32)
    with pytest.raises(SizeError):
        training_table(100)
