"""Simple solids in named colours, drawn as vectors with shading, on a transparent ground."""

from collections.abc import Callable
from io import BytesIO

import resvg_py
from PIL import Image

SIDE = 512

Rgb = tuple[float, float, float]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 44, 50),
    "orange": (250, 138, 28),
    "yellow": (252, 210, 44),
    "green": (46, 166, 76),
    "blue": (44, 104, 226),
    "purple": (136, 62, 194),
    "pink": (250, 122, 180),
    "black": (44, 44, 50),
}
"""The colours that compositions name."""


def _mix(a: Rgb, b: Rgb, part: float) -> Rgb:
    x, y, z = (p + (q - p) * part for p, q in zip(a, b, strict=True))
    return x, y, z


def _hex(rgb: Rgb) -> str:
    return "#" + "".join(f"{round(min(255, max(0, value))):02x}" for value in rgb)


def light(rgb: Rgb, part: float) -> str:
    """The colour brought towards white."""
    return _hex(_mix(rgb, (255, 255, 255), part))


def dark(rgb: Rgb, part: float) -> str:
    """The colour with less light, its hue kept."""
    return _hex((rgb[0] * (1 - part), rgb[1] * (1 - part), rgb[2] * (1 - part)))


def _radial(rgb: Rgb, name: str = "s") -> str:
    stops = ((0, light(rgb, 0.5)), (0.35, _hex(rgb)), (1, dark(rgb, 0.42)))
    return (
        f'<radialGradient id="{name}" cx="0.36" cy="0.3" r="0.78">{_stops(stops)}</radialGradient>'
    )


def _across(rgb: Rgb, name: str = "s") -> str:
    stops = ((0, dark(rgb, 0.2)), (0.3, light(rgb, 0.35)), (0.6, _hex(rgb)), (1, dark(rgb, 0.42)))
    return f'<linearGradient id="{name}">{_stops(stops)}</linearGradient>'


def _stops(stops: tuple[tuple[float, str], ...]) -> str:
    return "".join(f'<stop offset="{at}" stop-color="{colour}"/>' for at, colour in stops)


def _cube(rgb: Rgb, shaded: bool) -> str:
    faces = (
        ("50,8 92,30 50,52 8,30", light(rgb, 0.38)),
        ("8,30 50,52 50,96 8,74", _hex(rgb)),
        ("92,30 50,52 50,96 92,74", dark(rgb, 0.34)),
    )
    return "".join(
        f'<polygon points="{points}" fill="{fill}" stroke="{fill}" stroke-width="0.6"'
        ' stroke-linejoin="round"/>'
        for points, fill in faces
    )


def _sphere(rgb: Rgb, shaded: bool) -> str:
    if not shaded:
        return (
            f'<circle cx="50" cy="50" r="45" fill="{_hex(rgb)}"/>'
            f'<circle cx="36" cy="33" r="12" fill="{light(rgb, 0.45)}"/>'
        )
    return (
        f'<defs>{_radial(rgb)}</defs><circle cx="50" cy="50" r="45" fill="url(#s)"/>'
        f'<ellipse cx="35" cy="29" rx="10" ry="7" fill="white" opacity="0.55"/>'
    )


def _cone(rgb: Rgb, shaded: bool) -> str:
    body = "M50,5 L90,82 A40,13 0 0 1 10,82 Z"
    if not shaded:
        side = "M50,5 L90,82 A40,13 0 0 1 56,94.8 Z"
        return f'<path d="{body}" fill="{_hex(rgb)}"/><path d="{side}" fill="{dark(rgb, 0.25)}"/>'
    return f'<defs>{_across(rgb)}</defs><path d="{body}" fill="url(#s)"/>'


def _cylinder(rgb: Rgb, shaded: bool) -> str:
    body = "M20,18 V82 A30,12 0 0 0 80,82 V18 Z"
    fill = "url(#s)" if shaded else _hex(rgb)
    return (
        f'<defs>{_across(rgb)}</defs><path d="{body}" fill="{fill}"/>'
        f'<ellipse cx="50" cy="18" rx="30" ry="12" fill="{light(rgb, 0.45)}"/>'
    )


def _ring(rgb: Rgb, shaded: bool) -> str:
    fill = "url(#s)" if shaded else _hex(rgb)
    return (
        f"<defs>{_radial(rgb)}</defs>"
        f'<circle cx="50" cy="50" r="34" fill="none" stroke="{fill}" stroke-width="23"/>'
        f'<path d="M28,30 A30,30 0 0 1 52,20" fill="none" stroke="{light(rgb, 0.5)}"'
        ' stroke-width="6" stroke-linecap="round"/>'
    )


SOLIDS: dict[str, Callable[[Rgb, bool], str]] = {
    "cube": _cube,
    "sphere": _sphere,
    "cone": _cone,
    "cylinder": _cylinder,
    "torus": _ring,
}


def draw_solid(name: str, colour: str, style: str) -> Image.Image:
    """One of SOLIDS in one of COLOURS, RGBA, 512 px; "3D" is shaded, "flat" is in few tones."""
    body = SOLIDS[name](COLOURS[colour], style == "3D")
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" width="{SIDE}"'
        f' height="{SIDE}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)
    return Image.open(BytesIO(bytes(png))).convert("RGBA")
