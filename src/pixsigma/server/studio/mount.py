"""The page put into the application, so that it loads nothing from elsewhere."""

import os
from pathlib import Path

from fastapi import FastAPI

from pixsigma.errors import MissingExtraError
from pixsigma.server.keys import Keys
from pixsigma.server.service import Service

# before Gradio is imported: it would tell its makers of every start
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
try:
    import gradio as gr
except ImportError as error:
    raise MissingExtraError(
        "the studio needs gradio: pip install 'pixsigma[serve]', or serve with --no-studio"
    ) from error

from pixsigma.server.studio.canvas import fetch_nothing
from pixsigma.server.studio.page import make_page

FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]

ICON = (
    "<link rel='icon' href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' "
    "viewBox='0 0 32 32'><rect width='32' height='32' rx='7' fill='%236366f1'/><text x='16' y='23' "
    "font-size='21' text-anchor='middle' fill='white' font-family='sans-serif'>σ</text></svg>\">"
)
"""The mark in a browser's tab, where Gradio's would stand."""

_HERE = Path(__file__).parent


def mount(app: FastAPI, service: Service, keys: Keys | None) -> FastAPI:
    """The application with the studio at `/`; with keys, names and keys are asked for."""
    os.environ["GRADIO_TEMP_DIR"] = str(service.data / "studio")
    fetch_nothing()
    # shown from where they lie: a copy would outlive the picture
    service.results.mkdir(parents=True, exist_ok=True)
    gr.set_static_paths([service.results])

    def known(name: str, key: str) -> bool:
        return keys is not None and keys.owner(key.strip()) == name.strip()

    return gr.mount_gradio_app(
        app,
        make_page(service, locked=keys is not None),
        path="/",
        auth=known if keys else None,
        auth_message="This server wants your name and your key, which begins with ps-.",
        allowed_paths=[str(service.results.resolve())],
        max_file_size=service.limits.max_body,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=gr.themes.Default(
            primary_hue="indigo", font=FONTS, font_mono=["ui-monospace", "monospace"]
        ).set(body_text_color_subdued="*neutral_500"),  # its own is too faint to read on white
        css_paths=_HERE / "studio.css",
        head=f"{ICON}<script>{(_HERE / 'studio.js').read_text('utf-8')}</script>",
    )
