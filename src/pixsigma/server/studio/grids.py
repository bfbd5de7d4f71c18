"""Side by side: every pair of two settings, as a table and as one picture."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import product
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from pixsigma.errors import InputError

VARIED = {
    "prompt": ("prompt", str),
    "leave out": ("negative_prompt", str),
    "seed": ("seed", int),
    "steps": ("num_inference_steps", int),
    "guidance": ("guidance_scale", float),
    "sampler": ("sampler", str),
    "style": ("style", str),
    "distance": ("strength", float),
}
"""What a grid goes over: the field of a request, and what its values are."""

MOST_CELLS = 36
"""Pictures of one grid."""


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


def table(
    links: Sequence[str | None], across: tuple[str, Sequence[Any]], down: tuple[str, Sequence[Any]]
) -> str:
    """The grid as HTML; `links` are the addresses of its pictures, row by row, None: not yet."""
    head = "".join(f"<th scope='col'>{escape(label(value))}</th>" for value in across[1])
    corner = f"<th class='corner'>{escape(down[0])} ↓<br>{escape(across[0])} →</th>"
    rows = []
    for row, value in enumerate(down[1]):
        first = row * len(across[1])
        drawn = "".join(
            cell(link, f"{down[0]} {label(value)}, {across[0]} {label(other)}")
            for link, other in zip(links[first:], across[1], strict=False)
        )
        rows.append(f"<tr><th scope='row'>{escape(label(value))}</th>{drawn}</tr>")
    return (
        f"<div class='sheet' tabindex='0'><table><thead><tr>{corner}{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def cell(link: str | None, told: str) -> str:
    """One picture of the table, which opens by itself in another tab."""
    if link is None:
        return "<td><span class='waiting'></span></td>"
    source, text = escape(link), escape(told)
    return (
        f"<td><a href='{source}' target='_blank' title='{text}'>"
        f"<img src='{source}' alt='{text}'></a></td>"
    )


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


def label(value: Any) -> str:
    """A value as its row or column is called."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def shortened(value: Any, longest: int) -> str:
    """The same in the letters of the built-in font, and no longer than there is room."""
    text = label(value).encode("latin-1", "replace").decode("latin-1")
    return text if len(text) <= longest else text[: max(1, longest - 3)] + "..."
