"""What the studio says and asks, without its widgets: wishes to requests, states to sentences."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from pixsigma.buckets import size_for_aspect
from pixsigma.editing.opening import as_data
from pixsigma.errors import InputError
from pixsigma.server.service import Status

WISHES = (
    *("prompt", "negative", "style", "shape", "width", "height", "steps", "guidance", "sampler"),
    *("seed", "count", "model", "loras", "lora_weight", "canvas", "strength"),
)
"""The widgets that make a request, in the order in which they are handed over."""


BACK = (
    *("prompt", "negative", "style", "width", "height", "steps", "guidance", "sampler", "seed"),
    "count",
)
"""The widgets that `again` sets."""

SHAPES = {
    "■ 1:1": (1, 1),
    "▬ 3:2": (3, 2),
    "▮ 2:3": (2, 3),
    "▬ 16:9": (16, 9),
    "▮ 9:16": (9, 16),
}
"""Shapes as pictures, and width to height."""

VARIED = {
    "prompt": ("prompt", str),
    "negative prompt": ("negative_prompt", str),
    "seed": ("seed", int),
    "steps": ("num_inference_steps", int),
    "guidance": ("guidance_scale", float),
    "sampler": ("sampler", str),
    "style": ("style", str),
}
"""What a grid goes over: the field of a request, and what its values are."""

MOST_CELLS = 36
"""Pictures of one grid."""

_HEAVY_SECONDS = 30
_BYTES_PER_PIXEL = 2600
"""Of the autoencoder's largest layers, in float32."""


def request_fields(wish: Mapping[str, Any], native: int) -> dict[str, Any]:
    """The widgets' values as fields of a request; raises InputError."""
    fields: dict[str, Any] = {
        "prompt": wish["prompt"] or "",
        "negative_prompt": wish["negative"] or "",
        "style": wish["style"] if wish["style"] != "none" else None,
        "num_inference_steps": int(wish["steps"]),
        "guidance_scale": float(wish["guidance"]),
        "sampler": wish["sampler"],
        "num_images": int(wish["count"]),
    }
    if wish["seed"] is not None and wish["seed"] >= 0:
        fields["seed"] = int(wish["seed"])
    if wish["loras"]:
        fields["loras"] = [
            {"path": name, "weight": float(wish["lora_weight"])} for name in wish["loras"]
        ]
    picture = picture_fields(wish["canvas"], float(wish["strength"]))
    return fields | (picture or size_fields(wish, native))


def size_fields(wish: Mapping[str, Any], native: int) -> dict[str, Any]:
    """The size: what is written, else the shape at the model's own area times the scale."""
    if wish["width"] and wish["height"]:
        return {"width": int(wish["width"]), "height": int(wish["height"])}
    height, width = size_for_aspect(native, *SHAPES[wish["shape"]])
    return {"width": width, "height": height}


def picture_fields(canvas: Mapping[str, Any] | None, strength: float) -> dict[str, Any]:
    """The picture to begin from, and as mask what was painted over it."""
    if not canvas or canvas.get("background") is None:
        return {}
    picture = canvas["background"].convert("RGB")
    fields: dict[str, Any] = {"image": as_data(picture), "strength": strength}
    mask = painted(canvas.get("layers") or [], picture.size)
    if mask is not None:
        fields["mask"] = as_data(mask)
    return fields


def painted(layers: Sequence[Image.Image | None], size: tuple[int, int]) -> Image.Image | None:
    """White where any layer has a stroke; None where nothing was painted."""
    mask = Image.new("L", size)
    for layer in layers:
        if layer is not None:
            stroke = layer.convert("RGBA").getchannel("A").resize(size)
            mask.paste(255, mask=stroke.point([0 if v < 16 else 255 for v in range(256)]))
    return mask if mask.getbbox() else None


# Grids


def axis(name: str, text: str) -> list[Any]:
    """The values of one side of a grid, parted by | ; raises InputError."""
    if name not in VARIED:
        raise InputError(f"a grid goes over {', '.join(VARIED)}; got {name!r}")
    kind = VARIED[name][1]
    parts = [part.strip() for part in text.split("|") if part.strip()]
    if not parts:
        raise InputError(f"write the values for {name} with | between them, such as 1 | 2 | 3")
    try:
        return [kind(part) for part in parts]
    except ValueError as error:
        raise InputError(f"{name} must be numbers with | between them, got {text!r}") from error


def cells(
    fields: Mapping[str, Any], across: tuple[str, Sequence[Any]], down: tuple[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """The fields of every picture of a grid, row by row; raises InputError for too many."""
    if across[0] == down[0]:
        raise InputError(f"a grid goes over two different settings, got {across[0]} twice")
    num = len(across[1]) * len(down[1])
    if num > MOST_CELLS:
        raise InputError(f"a grid has at most {MOST_CELLS} pictures, got {num}; leave some out")
    names = VARIED[down[0]][0], VARIED[across[0]][0]
    return [
        {**fields, "num_images": 1, names[0]: a, names[1]: b}
        for a, b in product(down[1], across[1])
    ]


def sheet(
    pictures: Sequence[Image.Image | None], across: Sequence[Any], down: Sequence[Any]
) -> Image.Image:
    """The grid as one picture, with its values at the top and at the left."""
    sizes = [p.size for p in pictures if p is not None] or [(64, 64)]
    width, height = max(s[0] for s in sizes), max(s[1] for s in sizes)
    left, top, gap = 110, 24, 4
    size = left + len(across) * (width + gap), top + len(down) * (height + gap)
    whole = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(whole)
    for k, value in enumerate(across):
        pen.text((left + k * (width + gap), 6), shortened(value, width // 7), fill="black")
    for k, value in enumerate(down):
        pen.text((4, top + k * (height + gap) + height // 2), shortened(value, 16), fill="black")
    for k, picture in enumerate(pictures):
        if picture is not None:
            row, column = divmod(k, len(across))
            place = left + column * (width + gap), top + row * (height + gap)
            whole.paste(ImageOps.contain(picture, (width, height)), place)
    return whole


def shortened(value: Any, longest: int) -> str:
    """A value as a label."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text.encode("latin-1", "replace").decode("latin-1")  # the built-in font has no more
    return text if len(text) <= longest else text[: max(1, longest - 3)] + "..."


# Words


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan(fields: Mapping[str, Any], speed: float | None) -> str:
    """What a request will cost; `speed` is pixels times steps a second, None where unknown."""
    width, height = fields.get("width"), fields.get("height")
    if not (width and height):
        return "The picture keeps its size."
    num, steps = fields["num_images"], fields["num_inference_steps"]
    memory = num * width * height * _BYTES_PER_PIXEL / 2**20
    text = f"{width}×{height}, {steps} steps, {num} picture{'s' if num > 1 else ''}"
    if speed is None:
        return f"{text}: the first drawing will tell how long it takes."
    seconds = num * width * height * steps / speed
    heavy = "**This is heavy.** " if seconds > _HEAVY_SECONDS else ""
    return f"{heavy}{text}: about {duration(seconds)}, {memory:,.0f} MB of memory at the end."


def sentence(status: Status) -> str:
    """How a job stands, for people."""
    job, seen = status.job, status.glimpse
    match job.state:
        case "queued":
            return f"Waiting; {status.place} before it." if status.place else "Next in line."
        case "running" if seen is None or seen.stage == "text":
            return "Reading the prompt…"
        case "running" if seen is not None and seen.stage == "denoising":
            left = "" if seen.seconds_left is None else f", {duration(seen.seconds_left)} left"
            return f"{bar(seen.index, seen.total)} step {seen.index} of {seen.total}{left}"
        case "running":
            return "Painting the pixels…"
        case "done":
            told = "".join(f"\n\n⚠ {warning}" for warning in job.warnings)
            seeds = ", ".join(map(str, job.seeds))
            return f"Done in {job.seconds or 0:.1f} s; seed {seeds}.{told}"
        case "cancelled":
            return "Stopped."
    return f"**That did not work:** {job.reason or 'no reason is known'}"


def bar(done: int, total: int, width: int = 20) -> str:
    """A bar of blocks."""
    full = round(width * done / max(1, total))
    return "█" * full + "░" * (width - full)


def told(fields: Mapping[str, Any]) -> str:
    """The settings of a picture, one a line."""
    names = {
        "prompt": "prompt",
        "negative_prompt": "negative",
        "style": "style",
        "width": "width",
        "height": "height",
        "num_inference_steps": "steps",
        "guidance_scale": "guidance",
        "sampler": "sampler",
        "seed": "seed",
        "strength": "strength",
    }
    lines = [f"{name}: {fields[key]}" for key, name in names.items() if fields.get(key) is not None]
    return "\n".join(lines)
