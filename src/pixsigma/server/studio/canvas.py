"""The editor for a picture and the mask painted over it, closed against hostile uploads."""

import io
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils
from PIL import Image

from pixsigma.errors import InputError
from pixsigma.server.limits import UPLOADS
from pixsigma.server.studio.wishes import STROKE

SHRUNK = 6
"""Times as many pixels as a server draws that a picture may have, which is shrunk: with the usual
four million those of telephones, which have twelve."""


def make_canvas(most_pixels: int, **settings: Any) -> gr.ImageEditor:
    """Gradio's editor, which measures what it is sent before anything is decoded.

    What has too many pixels is shrunk, and has the size it came in as `info["given"]`.
    """
    editor = gr.ImageEditor(
        type="pil",
        format="png",
        sources=["upload", "clipboard"],
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=12, colors=[(STROKE, 0.6)], color_mode="fixed"),
        **settings,
    )
    decode = editor.convert_and_format_image

    def checked(file: Any, flatten_on_white: bool = False) -> Any:
        if file is not None:
            given = Path(file.path) if hasattr(file, "path") else io.BytesIO(file)
            try:
                check_upload(given, SHRUNK * most_pixels)
            except InputError as error:
                raise gr.Error(str(error), title="That picture does not work") from error
        return shrunk(decode(file, flatten_on_white), most_pixels)

    # not a subclass, for which Gradio writes a file of types beside the source
    editor.convert_and_format_image = checked  # type: ignore[method-assign]
    return editor


def shrunk(picture: Any, most_pixels: int) -> Any:
    """The picture in a size of at most so many pixels; `info["given"]` is what it came in."""
    if picture is None or picture.width * picture.height <= most_pixels:
        return picture
    share = (most_pixels / (picture.width * picture.height)) ** 0.5
    width, height = (min(most_pixels, max(1, int(side * share))) for side in picture.size)
    smaller = picture.resize((width, height), Image.Resampling.LANCZOS)
    smaller.info["given"] = picture.size
    return smaller


def check_upload(file: Path | io.BytesIO, most_pixels: int) -> None:
    """Raise InputError for a foreign format or too many pixels; only the header is read."""
    try:
        with Image.open(file, formats=UPLOADS) as seen:
            width, height = seen.size
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"a picture must be {', '.join(UPLOADS)}, this is none") from error
    if width * height > most_pixels:
        raise InputError(
            f"a picture may have {most_pixels:,} pixels, this one has {width}x{height}; "
            "make it smaller first"
        )


def fetch_nothing() -> None:
    """Keep Gradio from fetching the addresses that a request names in place of files."""

    async def refuse(url: str, cache_dir: str) -> str:
        raise gr.Error("this server opens no address of a request")

    def refuse_now(url: str, cache_dir: str) -> str:
        raise gr.Error("this server opens no address of a request")

    processing_utils.async_ssrf_protected_download = refuse
    processing_utils.ssrf_protected_download = refuse_now
    processing_utils.save_url_to_cache = refuse_now
