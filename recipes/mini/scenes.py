"""Backgrounds, placements and simple faces for mini's pictures."""

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SIDE = 256
# Shapes are drawn larger and reduced, which smooths their edges.
OVER = 2
Rgb = tuple[int, int, int]
Rgba = tuple[int, int, int, int]

COLOURS: dict[str, Rgb] = {
    "light blue": (173, 216, 240),
    "blue": (52, 110, 220),
    "dark blue": (24, 38, 96),
    "yellow": (255, 221, 64),
    "light yellow": (255, 246, 190),
    "orange": (255, 150, 50),
    "peach": (255, 214, 180),
    "pink": (255, 170, 200),
    "red": (214, 48, 56),
    "purple": (130, 76, 190),
    "lavender": (214, 200, 245),
    "green": (64, 170, 86),
    "mint green": (184, 238, 208),
    "teal": (32, 140, 145),
    "beige": (236, 222, 196),
    "brown": (122, 82, 56),
    "grey": (160, 164, 170),
    "light grey": (222, 224, 228),
    "black": (18, 18, 22),
}
# Mean colours closer than this hide the thing in its background.
MIN_CONTRAST = 90.0


def choose_colours(art: Image.Image, count: int, rng: random.Random) -> list[str]:
    """Names of `count` different background colours that the art stands out from."""
    pixels = np.asarray(art.convert("RGBA").resize((64, 64)), dtype=np.float64)
    solid = pixels[pixels[..., 3] > 128][:, :3]
    names = [name for name, rgb in COLOURS.items() if _contrast(solid, rgb) > MIN_CONTRAST]
    return rng.sample(names, count)


def _contrast(solid: np.ndarray, rgb: Rgb) -> float:
    """The lower quartile of the distances between a colour and the pixels of the art."""
    return float(np.quantile(np.linalg.norm(solid - np.array(rgb), axis=1), 0.25))


def place_plain(
    art: Image.Image, rgb: Rgb, *, scale: float, shift: tuple[float, float]
) -> Image.Image:
    """The art on a plain colour; `shift` in [-1, 1] moves it within the free margin."""
    side = round(SIDE * scale)
    free = (SIDE - side) / 2
    corner = (round(free * (1 + shift[0])), round(free * (1 + shift[1])))
    canvas = Image.new("RGBA", (SIDE, SIDE), (*rgb, 255))
    canvas.alpha_composite(art.resize((side, side), Image.Resampling.LANCZOS), corner)
    return canvas.convert("RGB")


def place_standing(
    art: Image.Image, scene: Image.Image, *, height: float, foot: tuple[float, float]
) -> Image.Image:
    """The visible part of the art, its larger side `height` of the scene, standing on `foot`."""
    cut = art.crop(art.getchannel("A").getbbox())
    ratio = height * SIDE / max(cut.size)
    size = (max(1, round(cut.width * ratio)), max(1, round(cut.height * ratio)))
    left = min(max(round(foot[0] * SIDE - size[0] / 2), 0), SIDE - size[0])
    top = min(max(round(foot[1] * SIDE) - size[1], 0), SIDE - size[1])
    canvas = scene.convert("RGBA")
    canvas.alpha_composite(cut.resize(size, Image.Resampling.LANCZOS), (left, top))
    return canvas.convert("RGB")


def with_face(
    art: Image.Image, face: str, anchor: tuple[float, float, float] | None
) -> Image.Image:
    """The art with a drawn face; anchor is (x, y, width) of its frame, by default its middle."""
    base = art.resize((512, 512), Image.Resampling.LANCZOS)
    x, y, width = (512 * part for part in (anchor or _middle(base)))
    draw = ImageDraw.Draw(base)
    dark, cheek = (60, 34, 30, 255), (255, 120, 130, 255)
    eye = width * 0.13
    for side in (-1, 1):
        at = x + side * width * 0.30
        _disc(draw, at, y - width * 0.12, eye, eye * 1.35, dark)
        _disc(draw, at - eye * 0.3, y - width * 0.18, eye * 0.35, eye * 0.35, (255, 255, 255, 255))
        _disc(draw, x + side * width * 0.44, y + width * 0.13, eye * 0.8, eye * 0.55, cheek)
    mouth = width * 0.24
    start, end, drop = (15, 165, -0.05) if face == "happy" else (195, 345, 0.30)
    top = y + width * drop
    box = (x - mouth, top - mouth * 0.4, x + mouth, top + mouth * 1.3)
    draw.arc(box, start, end, fill=dark, width=max(4, round(width * 0.08)))
    return base


def _disc(
    draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, fill: Rgb | Rgba
) -> None:
    draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)


def _middle(art: Image.Image) -> tuple[float, float, float]:
    alpha = np.asarray(art.getchannel("A"), dtype=np.float64)
    rows, columns = np.indices(alpha.shape)
    x, y = (float((axis * alpha).sum() / alpha.sum()) for axis in (columns, rows))
    solid = alpha[round(y)] > 128
    return x / 512, y / 512, min(0.5, float(solid.mean()) * 0.55)


def _gradient(top: Rgb, bottom: Rgb) -> Image.Image:
    mix = np.linspace(0, 1, SIDE * OVER)[:, None, None]
    rows = np.array(top) * (1 - mix) + np.array(bottom) * mix
    return Image.fromarray(np.repeat(rows, SIDE * OVER, axis=1).round().astype(np.uint8))


def _hills(canvas: Image.Image, level: float, rgb: Rgb, swell: float, rng: random.Random) -> None:
    """Fill below a swelling line at `level` of the height."""
    side = SIDE * OVER
    phase, waves = rng.random() * 2 * math.pi, rng.uniform(0.6, 1.3)
    line = [
        (x, side * (level + swell * math.sin(phase + waves * 2 * math.pi * x / side)))
        for x in range(0, side + 8, 8)
    ]
    ImageDraw.Draw(canvas).polygon([*line, (side, side), (0, side)], fill=rgb)


def _dot(canvas: Image.Image, x: float, y: float, radius: float, rgb: Rgb) -> None:
    side = SIDE * OVER
    _disc(ImageDraw.Draw(canvas), x * side, y * side, radius * side, radius * side, rgb)


def _desert(rng: random.Random) -> Image.Image:
    canvas = _gradient((120, 196, 240), (250, 232, 200))
    if rng.random() < 0.5:
        _dot(canvas, rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.2), 0.07, (255, 214, 60))
    _hills(canvas, 0.58, (232, 186, 112), 0.05, rng)
    _hills(canvas, 0.70, (240, 202, 130), 0.03, rng)
    return canvas


def _beach(rng: random.Random) -> Image.Image:
    canvas = _gradient((130, 206, 250), (214, 240, 252))
    _hills(canvas, 0.48, (40, 140, 205), 0.0, rng)
    _hills(canvas, 0.68, (250, 226, 170), 0.02, rng)
    return canvas


def _meadow(rng: random.Random) -> Image.Image:
    canvas = _gradient((125, 200, 250), (220, 242, 252))
    _hills(canvas, 0.58, (120, 196, 96), 0.06, rng)
    _hills(canvas, 0.70, (92, 176, 80), 0.03, rng)
    return canvas


def _night(rng: random.Random) -> Image.Image:
    canvas = _gradient((14, 18, 60), (52, 52, 120))
    for _ in range(45):
        _dot(canvas, rng.random(), rng.random(), rng.uniform(0.003, 0.009), (250, 246, 214))
    return canvas


def _underwater(rng: random.Random) -> Image.Image:
    canvas = _gradient((70, 180, 226), (16, 76, 150))
    for _ in range(14):
        _dot(canvas, rng.random(), rng.random(), rng.uniform(0.006, 0.018), (150, 214, 240))
    _hills(canvas, 0.90, (214, 190, 140), 0.02, rng)
    return canvas


def _snow(rng: random.Random) -> Image.Image:
    canvas = _gradient((150, 190, 226), (226, 236, 246))
    _hills(canvas, 0.58, (232, 240, 250), 0.05, rng)
    _hills(canvas, 0.70, (246, 250, 255), 0.03, rng)
    for _ in range(40):
        _dot(canvas, rng.random(), rng.random() * 0.7, rng.uniform(0.004, 0.009), (255, 255, 255))
    return canvas


SCENES: dict[str, Callable[[random.Random], Image.Image]] = {
    "desert": _desert,
    "beach": _beach,
    "meadow": _meadow,
    "night sky": _night,
    "sea": _underwater,
    "snow": _snow,
}
# How a caption says where the thing is.
PLACES = {
    "desert": ("in the desert", "in the Sahara desert", "on the sand in the desert"),
    "beach": ("on the beach", "on a sandy beach by the sea"),
    "meadow": ("on the grass", "on a green meadow", "on a green meadow under a blue sky"),
    "night sky": ("in the night sky", "in a dark night sky with stars"),
    "sea": ("under water", "in the blue sea"),
    "snow": ("in the snow", "in a snowy landscape"),
}


def draw_scene(name: str, rng: random.Random) -> Image.Image:
    """One of SCENES at 256 px."""
    return SCENES[name](rng).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
