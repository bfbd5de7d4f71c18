"""What a person sets on the page, as the fields of a request, and back again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from pixsigma.buckets import size_for_aspect
from pixsigma.editing.opening import as_data, open_mask, open_picture
from pixsigma.errors import InputError, PixsigmaError

WISHES = (
    *("prompt", "negative", "style", "shape", "scale", "width", "height", "steps", "guidance"),
    *("sampler", "seed", "count", "model", "loras", "lora_weight", "canvas", "fit", "strength"),
)
"""The widgets that make a request, in the order in which they are handed over."""

NAMES = {
    "prompt": "the prompt",
    "negative_prompt": "what to leave out",
    "width": "the width",
    "height": "the height",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_images": "the number of pictures",
    "seed": "the seed",
    "strength": "the distance from the picture",
}
"""Fields of a request as the page calls them."""

SHAPES = {"1:1": (1, 1), "3:2": (3, 2), "2:3": (2, 3), "16:9": (16, 9), "9:16": (9, 16)}
"""Width to height."""

SCALES = {"small": 0.5, "normal": 1.0, "large": 1.5, "huge": 2.0}
"""Sides, as shares of those that the model was trained on."""

NO_STYLE = "none"

_QUARTER = 16
"""What quarters of a side are rounded down to."""


@dataclass(frozen=True)
class Native:
    """What a model draws best."""

    side: int
    """In pixels."""
    multiple: int = 16
    """What sides in pixels must be multiples of."""


def request_fields(wish: Mapping[str, Any], native: Native) -> dict[str, Any]:
    """The widgets' values as fields of a request for a model; raises InputError."""
    if not (wish["prompt"] or "").strip():
        raise InputError("write what to draw first: the prompt is empty")
    fields: dict[str, Any] = {
        "prompt": wish["prompt"],
        "negative_prompt": wish["negative"] or "",
        "style": wish["style"] if wish["style"] != NO_STYLE else None,
        "num_inference_steps": whole(wish["steps"], "steps"),
        "guidance_scale": number(wish["guidance"], "guidance"),
        "sampler": wish["sampler"],
        "num_images": whole(wish["count"], "the number of pictures"),
    }
    if wish["seed"] not in (None, ""):
        fields["seed"] = whole(wish["seed"], "the seed")
    if wish["loras"]:
        weight = number(wish["lora_weight"], "the weight of adapters")
        fields["loras"] = [{"path": name, "weight": weight} for name in wish["loras"]]
    picture = picture_fields(wish["canvas"], number(wish["strength"], "the distance"))
    if picture and not wish["fit"]:
        return fields | picture
    return fields | size_fields(wish, native) | picture


def whole(value: Any, name: str) -> int:
    """A number that has no fraction, as it is or written; raises InputError."""
    try:
        number = int(value)
        if isinstance(value, str) or number == value:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    given = "nothing" if value in (None, "") else value
    raise InputError(f"{name} must be a whole number, got {given}")


def number(value: Any, name: str) -> float:
    """A number; raises InputError for a box that was left empty."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a number, got {value or 'nothing'}") from error


def size_fields(wish: Mapping[str, Any], native: Native) -> dict[str, int]:
    """The size: what is written, else shape and scale; raises InputError for one side alone."""
    width, height = wish["width"], wish["height"]
    if width and height:
        return {"width": whole(width, "the width"), "height": whole(height, "the height")}
    if width or height:
        raise InputError("give both width and height, or neither for the chosen shape and size")
    return sized(native, wish["shape"], wish["scale"])


def sized(native: Native, shape: str, scale: str) -> dict[str, int]:
    """Width and height in pixels of a shape and a scale."""
    tile = native.multiple
    side = max(tile, round(native.side * SCALES[scale] / tile) * tile)
    height, width = size_for_aspect(side, *SHAPES[shape], tile)
    return {"width": width, "height": height}


def nearest_shape(size: tuple[int, int]) -> str:
    """The shape whose width to height is most like that of `size`."""
    ratio = size[0] / size[1]
    return min(SHAPES, key=lambda name: abs(SHAPES[name][0] / SHAPES[name][1] - ratio))


def picture_fields(canvas: Mapping[str, Any] | None, strength: float) -> dict[str, Any]:
    """The picture to begin from, and as mask what was painted over it."""
    if not canvas or canvas.get("background") is None:
        return {}
    picture = canvas["background"].convert("RGBA")
    if not picture.getbbox():  # the editor hands an empty sheet over where nothing was chosen
        return {}
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
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


# And back


def widgets_of(
    fields: Mapping[str, Any], model: str, native: Native, loras: Mapping[str, Path]
) -> dict[str, Any]:
    """The widgets' values that make a request with these fields."""
    named = {str(path): name for name, path in loras.items()}
    chosen = [named[lora["path"]] for lora in fields["loras"] if lora["path"] in named]
    style = fields["style"]
    values = {
        "prompt": fields["prompt"],
        "negative": fields["negative_prompt"],
        "style": style if isinstance(style, str) else NO_STYLE,
        "steps": fields["num_inference_steps"],
        "guidance": fields["guidance_scale"],
        "sampler": fields["sampler"],
        "seed": fields["seed"],
        "count": 1,
        "model": model,
        "loras": chosen,
        "lora_weight": fields["loras"][0]["weight"] if chosen else 1.0,
        "canvas": canvas_of(fields),
        "fit": fields["width"] is not None or not fields["image"],
        "strength": 0.6 if fields["strength"] is None else fields["strength"],
    }
    return values | size_widgets(fields["width"], fields["height"], native)


def size_widgets(width: int | None, height: int | None, native: Native) -> dict[str, Any]:
    """Shape and scale that make this size, or the size itself."""
    for shape, scale in product(SHAPES, SCALES):
        if sized(native, shape, scale) == {"width": width, "height": height}:
            return {"shape": shape, "scale": scale, "width": None, "height": None}
    shape = nearest_shape((width, height)) if width and height else "1:1"
    return {"shape": shape, "scale": "normal", "width": width, "height": height}


def canvas_of(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The picture that a request began from, with its mask painted over it."""
    if not fields["image"]:
        return None
    try:
        picture = open_picture(fields["image"])
        mask = open_mask(fields["mask"]) if fields["mask"] else None
    except PixsigmaError:
        return None
    return on_canvas(picture, mask)


def on_canvas(picture: Image.Image, mask: Image.Image | None = None) -> dict[str, Any]:
    """What the editor shows: a picture, and strokes where the mask is white."""
    layers = []
    if mask is not None:
        stroke = Image.new("RGBA", picture.size, STROKE)
        stroke.putalpha(mask.resize(picture.size))
        layers.append(stroke)
    composite = picture.convert("RGBA")
    for layer in layers:
        composite = Image.alpha_composite(composite, layer)
    return {"background": picture, "layers": layers, "composite": composite}


STROKE = "#ff3366"
"""The colour of the mask's brush."""


# From a picture to another


def again_fields(fields: Mapping[str, Any], loras: Mapping[str, Path]) -> dict[str, Any]:
    """A request that was drawn, ready for another seed: adapters by name, one picture."""
    named = {str(path): name for name, path in loras.items()}
    gone = [lora["path"] for lora in fields["loras"] if lora["path"] not in named]
    if gone:
        raise InputError(f"this server no longer has the adapter {Path(gone[0]).stem!r}")
    chosen = [lora | {"path": named[lora["path"]]} for lora in fields["loras"]]
    return {**fields, "loras": chosen, "num_images": 1, "seed": None}


def begun_fields(
    fields: Mapping[str, Any], picture: Image.Image, loras: Mapping[str, Path], **changes: Any
) -> dict[str, Any]:
    """A request that begins from this picture, with the words that drew it and with `changes`."""
    none = dict.fromkeys(("strength", "mask", "extend", "width", "height"))
    off = dict.fromkeys(("inpaint_crop", "two_pass", "tiled"), False)
    return again_fields(fields, loras) | none | off | {"image": as_data(picture)} | changes


def variation(_: tuple[int, int]) -> dict[str, Any]:
    """What makes a picture like this one."""
    return {"strength": 0.7}


def enlarged(size: tuple[int, int]) -> dict[str, Any]:
    """What makes a picture of (width, height) twice as wide and high, refined in tiles."""
    return {"width": 2 * size[0], "height": 2 * size[1], "tiled": True, "fast": False}


def wider(size: tuple[int, int], sides: Sequence[str]) -> dict[str, Any]:
    """What draws on beyond these sides of a picture of (width, height), a quarter of it on each."""
    width, height = (max(_QUARTER, side // 4 // _QUARTER * _QUARTER) for side in size)
    return {"extend": {side: width if side in ("left", "right") else height for side in sides}}
