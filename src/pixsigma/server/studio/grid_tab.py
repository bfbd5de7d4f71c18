"""The tab that compares: every pair of two settings, side by side."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import gradio as gr

from pixsigma.server.studio import grids
from pixsigma.server.studio.comparing import GridScene, draw_grid, stop_all
from pixsigma.server.studio.drawing import Studio
from pixsigma.server.studio.wiring import DRAWING, QUIET, client_of, wish_of

START = (("Across", "guidance", "2 | 4.5 | 7"), ("Down", "steps", "5 | 20"))
"""The sides, and what they go over at first."""


def compare(studio: Studio, inputs: Sequence[Any]) -> None:
    """Lay the tab out; `inputs` are the widgets of a wish."""
    gr.Markdown("Every pair of two settings; the rest as in the form. Put | between values.")
    sides = []
    for name, start, values in START:
        with gr.Row(elem_classes="axis"):
            over = gr.Dropdown(list(grids.VARIED), value=start, label=name, min_width=120)
            text = gr.Textbox(values, label="Values", elem_id=name.lower(), min_width=160)
            sides += [over, text]
    with gr.Row(elem_id="grid_go"):
        go = gr.Button("Draw all", variant="primary", elem_id="grid", scale=3, min_width=120)
        stop = gr.Button("Stop", elem_id="grid_stop", interactive=False, scale=1, min_width=80)
    sure = gr.Button("Draw anyway", variant="stop", elem_id="grid_sure", visible=False)
    status, ids = gr.HTML("", elem_id="grid_status"), gr.State([])
    sheet = gr.HTML("", elem_id="sheet")
    outputs = [status, sheet, ids, go, stop, sure]
    for button, confirmed in ((go, False), (sure, True)):
        button.click(drawn(studio, confirmed), [*sides, *inputs], outputs, **DRAWING)

    def stop_grid(ids: list[str]) -> None:
        stop_all(studio, ids)

    stop.click(stop_grid, ids, None, queue=False, **QUIET)


def drawn(studio: Studio, confirmed: bool) -> Callable[..., AsyncIterator[Any]]:
    """What draws a grid."""

    async def draw(
        request: gr.Request, over: str, values: str, down: str, below: str, *rest: Any
    ) -> AsyncIterator[Any]:
        axes = (over, values), (down, below)
        stream = draw_grid(studio, wish_of(rest), *axes, client_of(request), confirmed)
        async for scene in stream:
            yield grid_updates(scene)

    return draw


def grid_updates(scene: GridScene) -> list[Any]:
    """One scene of a grid, in the order of its outputs."""
    return [
        scene.words,
        gr.skip() if scene.table is None else scene.table,
        gr.skip() if scene.ids is None else scene.ids,
        gr.update(value="Drawing…" if scene.mood == "busy" else "Draw all"),
        gr.update(interactive=scene.mood == "busy"),
        gr.update(visible=scene.mood == "asking"),
    ]
