"""Emoji art in other colours: the one hue that a thing has is turned, its shading kept."""

import colorsys

import numpy as np
from PIL import Image
from solids import COLOURS

NEAR, WIDE = 0.075, 0.14
"""Hues (of 1) that lie so near the main one are turned with it; things of many shades need WIDE."""


def main_hue(art: Image.Image) -> tuple[float, float]:
    """The commonest hue of the art's coloured pixels, and the share of the art that has it."""
    hsv, solid = _hsv(art)
    coloured = solid & (hsv[..., 1] > 0.25) & (hsv[..., 2] > 0.2)
    if not coloured.any():
        return 0.0, 0.0
    counts, _ = np.histogram(hsv[..., 0][coloured], bins=48, range=(0, 1))
    wide = counts + np.roll(counts, 1) + np.roll(counts, -1)
    hue = (int(wide.argmax()) + 0.5) / 48
    return hue, float((coloured & _near(hsv[..., 0], hue, NEAR)).sum() / solid.sum())


def recoloured(art: Image.Image, colour: str, near: float = NEAR) -> Image.Image:
    """The art with its main hue turned to one of COLOURS."""
    hsv, solid = _hsv(art)
    hue, _ = main_hue(art)
    chosen = solid & (hsv[..., 1] > 0.16) & _near(hsv[..., 0], hue, near)
    own = np.median(hsv[chosen], axis=0)
    target = colorsys.rgb_to_hsv(*(value / 255 for value in COLOURS[colour]))
    turned = hsv.copy()
    turned[..., 0] = np.where(chosen, target[0], hsv[..., 0])
    for part in (1, 2):
        scaled = np.clip(hsv[..., part] * target[part] / max(own[part], 1e-3), 0, 1)
        turned[..., part] = np.where(chosen, scaled, hsv[..., part])
    rgb = Image.fromarray((turned * 255).round().astype(np.uint8), "HSV").convert("RGB")
    rgb.putalpha(art.getchannel("A"))
    return rgb


def _hsv(art: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Hue, saturation, value in [0, 1] and what is not transparent."""
    hsv = np.asarray(art.convert("RGB").convert("HSV"), dtype=np.float64) / 255
    return hsv, np.asarray(art.getchannel("A")) > 128


def _near(hues: np.ndarray, hue: float, near: float) -> np.ndarray:
    return np.abs((hues - hue + 0.5) % 1 - 0.5) < near
