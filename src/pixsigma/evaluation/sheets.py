"""Contact sheets: drawings with their prompts below and a mark that tells how they scored."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pixsigma.errors import InputError
from pixsigma.weights.files import atomic_write

LINE, LETTER = 12, 6  # pixels of PIL's own font at size 10
GOOD, BAD, PLAIN = "#1a7f37", "#b3261e", "#444444"


def contact_sheet(
    pictures: Sequence[Image.Image],
    texts: Sequence[str],
    marks: Sequence[bool | None],
    *,
    side: int = 128,
    columns: int = 8,
) -> Image.Image:
    """Pictures at `side` pixels, row by row, each over two lines of text, green if it is right.

    Raises InputError for no pictures.
    """
    if not pictures:
        raise InputError("a contact sheet needs at least one picture")
    columns = min(columns, len(pictures))
    cell, rows = side + 2 * LINE + 6, -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (side + 4), rows * cell), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(10)
    for i, (picture, text, mark) in enumerate(zip(pictures, texts, marks, strict=True)):
        left, top = i % columns * (side + 4) + 2, i // columns * cell + 2
        small = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        page.paste(small, (left, top))
        colour = {True: GOOD, False: BAD, None: PLAIN}[mark]
        for k, line in enumerate(lines(text, side // LETTER)):
            draw.text((left, top + side + 2 + k * LINE), line, fill=colour, font=font)
    return page


def lines(text: str, width: int) -> list[str]:
    """The text in at most two lines of `width` letters, with an ellipsis where it goes on."""
    found = [""]  # a word that is longer than a line would reach into the next picture's text
    for word in (w if len(w) <= width else f"{w[: width - 1]}…" for w in text.split()):
        longer = f"{found[-1]} {word}".strip()
        if len(longer) <= width or not found[-1]:
            found[-1] = longer
        else:
            found.append(word)
    if len(found) > 2:
        found = [found[0], f"{found[1][: width - 1]}…"]
    return found


def save(page: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all; raises OutputError."""
    with atomic_write(path) as temp:
        page.save(temp, "PNG")
