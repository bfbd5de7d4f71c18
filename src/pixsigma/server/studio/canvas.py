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


def make_canvas(most_pixels: int, **settings: Any) -> gr.ImageEditor:
    """Gradio's editor, which measures what it is sent before anything is decoded."""
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
                check_upload(given, most_pixels)
            except InputError as error:
                raise gr.Error(str(error), title="That picture does not work") from error
        return decode(file, flatten_on_white)

    # not a subclass, for which Gradio writes a file of types beside the source
    editor.convert_and_format_image = checked  # type: ignore[method-assign]
    return editor


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
