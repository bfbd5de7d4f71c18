"""The page: where the widgets lie, and what calls what."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from pixsigma.server.service import Service
from pixsigma.server.studio import wishes
from pixsigma.server.studio.drawing import Scene, Studio
from pixsigma.server.studio.grid_tab import compare
from pixsigma.server.studio.history import SHOWN, Chosen, History
from pixsigma.server.studio.taking import taken
from pixsigma.server.studio.tools import Tools, to_picture
from pixsigma.server.studio.widgets import asking, setting
from pixsigma.server.studio.wiring import (
    DRAWING,
    QUIET,
    Widgets,
    client_of,
    told_in_words,
    wish_of,
)

KEPT_SECONDS = 86400
"""How long what a visitor put into the editor lies on the disk."""

HEADER = """<header><h1>pixsigma</h1><span class="links">{account}<button id="shade" type="button"
title="light or dark">◐<span class="unseen">light or dark</span></button></span></header>"""

EMPTY = """<div class="empty">Your picture appears here.<br><small>Enter draws · Ctrl+Enter draws
from anywhere · Esc stops</small></div>"""

KEEP = "id => { sessionStorage.setItem('pixsigma-job', id ?? ''); }"
KEPT = "() => [sessionStorage.getItem('pixsigma-job') ?? '']"
"""Each window for itself: two of them may draw."""


def make_page(service: Service, *, locked: bool = False) -> gr.Blocks:
    """All of it; `locked` where visitors came in with a key and may go out again."""
    account = '<a href="logout">sign out</a>' if locked else ""
    page = gr.Blocks(title="pixsigma", analytics_enabled=False, delete_cache=(3600, KEPT_SECONDS))
    with page:
        gr.HTML(HEADER.format(account=account), elem_id="top")
        with gr.Row(elem_id="studio"):
            with gr.Column(elem_id="ask", min_width=0):
                w = asking(service)
            show = gr.Column(elem_id="show", min_width=0)
            with gr.Column(elem_id="set", min_width=0):
                w |= setting(service)
        with show:
            Page(Studio(service), w).lay_out(page)
    return page


class Page:
    """The tabs, and every event."""

    def __init__(self, studio: Studio, w: Widgets) -> None:
        self.studio, self.w = studio, w
        self.inputs = [w[name] for name in wishes.WISHES]
        self.job = gr.State("")
        """The id of what is drawn."""
        self.kept = gr.Textbox(visible=False)
        """The same, for the browser's window to keep; nothing that it says is trusted."""

    def lay_out(self, page: gr.Blocks) -> None:
        """The tabs and what they do."""
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Picture", id="picture"):
                self.drawing()
            with gr.Tab("Side by side", id="grid"):
                compare(self.studio, self.inputs)
            with gr.Tab("History", id="history") as past:
                older = self.remembering(page, past)
        for tools in (self.tools, older):
            tools.wire(self.w, self.job, tabs, self.shown, self.outputs, self.inputs)
        self.on_draw(tabs)
        self.resuming(page)
        self.planning(page)
        self.sizing()
        self.choosing()
        self.taking()

    # The tab that draws

    def drawing(self) -> None:
        """Status, preview, pictures, and what can be done with them."""
        self.status = gr.HTML("", elem_id="status")
        self.preview = gr.HTML(EMPTY, elem_id="preview")
        self.gallery = gr.Gallery(
            label="Pictures",
            show_label=False,
            elem_id="gallery",
            format="png",
            preview=True,
            object_fit="contain",
            interactive=False,
            visible=False,
            buttons=["download", "fullscreen"],
        )
        self.tools = tools = Tools(self.studio)
        tools.choose_from(self.gallery)
        self.outputs = [self.status, self.preview, self.gallery, self.job]
        self.outputs += [tools.marks, tools.chosen, tools.column]
        self.outputs += [self.w["draw"], self.w["stop"], self.w["sure"]]

    def on_draw(self, tabs: Any) -> None:
        """Draw, draw anyway, stop."""
        w = self.w

        async def draw(request: gr.Request, job: str, *values: Any) -> AsyncIterator[Any]:
            stream = self.studio.draw(wish_of(values), client_of(request))
            async for out in self.shown(job, stream, told=True):
                yield out

        async def draw_anyway(request: gr.Request, job: str, *values: Any) -> AsyncIterator[Any]:
            stream = self.studio.draw(wish_of(values), client_of(request), sure=True)
            async for out in self.shown(job, stream):
                yield out

        def begun(job: str) -> Any:
            if self.studio.is_busy(job):
                tell_busy()
            return to_picture()

        inputs = [self.job, *self.inputs]
        # Gradio says nothing of what it leaves out while the event is under way
        gr.on([w["draw"].click, w["prompt"].submit], begun, self.job, tabs, **QUIET)
        gr.on([w["draw"].click, w["prompt"].submit], draw, inputs, self.outputs, **DRAWING)
        w["sure"].click(draw_anyway, inputs, self.outputs, **DRAWING)
        w["stop"].click(self.stop, self.job, None, queue=False, **QUIET)

    async def shown(
        self, job: str, stream: AsyncIterator[Scene], *, told: bool = False
    ) -> AsyncIterator[Any]:
        """The scenes as updates of the widgets; none where the page draws something already.

        That is said, unless it was `told`.
        """
        if self.studio.is_busy(job):
            if not told:
                tell_busy()
            yield [gr.skip()] * len(self.outputs)
            return
        async for scene in stream:
            yield updates(scene)

    def resuming(self, page: gr.Blocks) -> None:
        """What was drawn goes on being shown, and can be stopped, when the page is loaded anew."""

        async def resume(request: gr.Request, kept: str | None) -> AsyncIterator[Any]:
            # where nothing comes at all, Gradio empties every widget
            yield [gr.skip()] * len(self.outputs)
            async for scene in self.studio.resume(kept or "", client_of(request)):
                yield updates(scene)

        # a state stays at the server, so its value goes through a box that nobody sees
        told = self.job.change(lambda job: job, self.job, self.kept, **QUIET)
        told.then(None, self.kept, None, js=KEEP)
        page.load(resume, self.kept, self.outputs, js=KEPT, **DRAWING)

    def stop(self, job: str) -> None:
        """Cancel what is drawn."""
        if not self.studio.stop(job):
            gr.Info("There is nothing to stop.")

    # The tab of what was drawn before

    def remembering(self, page: gr.Blocks, tab: Any) -> Tools:
        """The history; returns the buttons under it."""
        none = gr.HTML("<div class='empty'>Nothing was drawn yet.</div>", elem_id="nothing")
        gallery = gr.Gallery(
            label="Drawn before",
            show_label=False,
            columns=5,
            elem_id="history",
            format="png",
            interactive=False,
            preview=False,
            visible=False,
            height="auto",
            buttons=["download", "fullscreen"],
        )
        num = gr.State(SHOWN)
        more = gr.Button("Older ones", size="sm", visible=False, elem_id="older")
        tools = Tools(self.studio, deletes=True)
        tools.choose_from(gallery)
        past = [gallery, tools.marks, num, none, more]

        def latest(request: gr.Request) -> list[Any]:
            return self.history(request, SHOWN)

        def older(request: gr.Request, num: int) -> list[Any]:
            return self.history(request, num + SHOWN)

        def delete(request: gr.Request, mark: Chosen) -> list[Any]:
            told_in_words(lambda: History(self.studio, client_of(request)).delete(mark))
            return [*self.history(request, SHOWN), None, gr.update(visible=False)]

        for event in (page.load, tab.select):
            event(latest, None, past, **QUIET)
        more.click(older, num, past, **QUIET)
        tools.delete.click(delete, tools.chosen, [*past, tools.chosen, tools.column], **QUIET)
        return tools

    def history(self, request: gr.Request, num: int) -> list[Any]:
        """The pictures of the last `num` jobs, for the history's widgets."""
        shown = History(self.studio, client_of(request)).latest(num)
        some = bool(shown.pictures)
        full = len({job for job, _ in shown.marks}) >= num
        return [
            gr.update(value=shown.pictures, visible=some, selected_index=None),
            *(shown.marks, num, gr.update(visible=not some), gr.update(visible=full)),
        ]

    # What changes by itself

    def planning(self, page: gr.Blocks) -> None:
        """The cost under the button, whenever it changes."""
        w = self.w
        names = [name for name in wishes.WISHES if name not in ("prompt", "canvas")]

        def plan(request: gr.Request, *values: Any) -> str:
            wish = dict(zip(names, values, strict=True)) | {"canvas": None}
            return self.studio.plan(wish, client_of(request))

        changing = ("shape", "scale", "width", "height", "steps", "guidance", "count", "model")
        # a drawing that is done tells how long the next one takes
        events = [page.load, self.tools.chosen.change, *(w[name].change for name in changing)]
        inputs = [w[name] for name in names]
        gr.on(events, plan, inputs, w["plan"], trigger_mode="always_last", **QUIET)

    def sizing(self) -> None:
        """Shape and size instead of sides, where they are touched; the shape of an upload."""
        w = self.w
        for name in ("shape", "scale"):
            w[name].input(lambda: (None, None), None, [w["width"], w["height"]], **QUIET)

        def shape_of(canvas: dict[str, Any] | None) -> Any:
            picture = (canvas or {}).get("background")
            if picture is None:
                return gr.skip()
            if given := picture.info.get("given"):
                sizes = f"{given[0]}x{given[1]} to {picture.width}x{picture.height}"
                gr.Info(f"The picture is shrunk from {sizes}: this server takes no larger ones.")
            return wishes.nearest_shape(picture.size)

        w["canvas"].upload(shape_of, w["canvas"], w["shape"], **QUIET)

    def choosing(self) -> None:
        """What suits a model, when it is chosen."""
        pipes = self.studio.service.pipes
        self.w["model"].input(
            lambda name: pipes[name].default_guidance, self.w["model"], self.w["guidance"], **QUIET
        )

    def taking(self) -> None:
        """The settings of a picture's file, when it is given."""

        def take(file: str, model: str) -> list[Any]:
            values, left = told_in_words(lambda: taken(self.studio, Path(file), model))
            if left:
                gr.Info(f"The form has no place for what the file tells of {', '.join(left)}.")
            return [values[name] for name in wishes.WISHES]

        file = self.w["file"]
        file.upload(take, [file, self.w["model"]], self.inputs, **QUIET)


def tell_busy() -> None:
    """Say why nothing begins."""
    gr.Info("One drawing at a time: wait for it, or stop it.")


def updates(scene: Scene) -> list[Any]:
    """One scene, in the order of the outputs of the tab that draws."""
    preview, gallery, marks, chosen, tools = (gr.skip() for _ in range(5))
    if scene.mood == "busy":
        tools = gr.update(visible=False)
    if scene.preview:
        preview, gallery = gr.update(value=scene.preview, visible=True), gr.update(visible=False)
    if scene.pictures:
        preview = gr.update(value="", visible=False)
        gallery = gr.update(value=scene.pictures, selected_index=0, visible=True)
        marks = [(scene.job, index) for index in range(len(scene.pictures))]
        chosen, tools = marks[0], gr.update(visible=True)
    elif scene.preview == "":
        preview, gallery = gr.update(value=EMPTY, visible=True), gr.update(visible=False)
        chosen = None
    return [
        *(gr.skip() if scene.words is None else scene.words, preview, gallery),
        *(gr.skip() if scene.job is None else scene.job, marks, chosen, tools),
        gr.update(value="Drawing…" if scene.mood == "busy" else "Draw"),
        gr.update(interactive=scene.mood == "busy"),
        gr.update(visible=scene.mood == "asking"),
    ]
