"""The buttons under a picture: again, vary, enlarge, extend, use it or its settings, delete."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeAlias

import gradio as gr

from pixsigma.errors import InputError
from pixsigma.server.studio import wishes
from pixsigma.server.studio.drawing import Scene, Studio
from pixsigma.server.studio.history import Chosen, History
from pixsigma.server.studio.wiring import DRAWING, QUIET, Widgets, client_of, told_in_words

Show: TypeAlias = Callable[[str, AsyncIterator[Scene]], AsyncIterator[Any]]
"""A job that may still be drawn, and new scenes, to updates of the tab that draws."""

Start: TypeAlias = Callable[[History, Chosen], AsyncIterator[Scene]]
"""A visitor's history and a picture of it to the scenes of another drawing."""

_SEEN = """async () => {
  const fold = document.querySelector('#begin');
  const seen = () => fold.querySelector('canvas')?.getBoundingClientRect().width > 0;
  for (const end = Date.now() + 20000; !seen() && Date.now() < end;)
    await new Promise(done => setTimeout(done, 50));
  fold.scrollIntoView({block: 'center'});
}"""
"""Waits for the editor, which loads when it is unfolded, and fits a picture into what is seen."""

DIRECTIONS = {
    "left": ("left",),
    "right": ("right",),
    "up": ("top",),
    "down": ("bottom",),
    "around": ("left", "right", "top", "bottom"),
}
"""The sides that a picture is drawn on beyond, by the names of their buttons."""

_FOCUS = "() => document.querySelector('#prompt textarea').focus()"


class Tools:
    """The buttons for one gallery, whose chosen picture is `chosen`."""

    def __init__(self, studio: Studio, *, deletes: bool = False) -> None:
        self.studio, self.chosen, self.marks = studio, gr.State(None), gr.State([])
        with gr.Column(visible=False, elem_classes="tools") as self.column:
            with gr.Row(elem_classes="buttons"):
                self.again = tool("Again")
                self.vary = tool("Vary")
                self.enlarge = tool("Enlarge")
                self.use = tool("Use as input")
                self.back = tool("Take its settings")
                self.delete = tool("Delete", visible=deletes)
            with gr.Row(elem_classes="buttons"):
                self.extend = {sides: tool(f"Extend {name}") for name, sides in DIRECTIONS.items()}
            with gr.Accordion("How it was drawn", open=False, elem_classes="told"):
                self.told = gr.Textbox(
                    show_label=False,
                    lines=4,
                    max_lines=12,
                    interactive=False,
                    container=False,
                    buttons=["copy"],
                )
        self.chosen.change(self.tell, self.chosen, self.told, **QUIET)

    def choose_from(self, gallery: Any) -> None:
        """The picture that is looked at in the gallery is the chosen one."""

        def choose(known: list[Any], event: gr.SelectData) -> list[Any]:
            mark = tuple(known[event.index])
            together = sum(job == mark[0] for job, _ in known)
            label = f"Delete all {together}" if together > 1 else "Delete"
            return [mark, gr.update(visible=True), gr.update(value=label)]

        gallery.select(choose, self.marks, [self.chosen, self.column, self.delete], **QUIET)

    def wire(
        self, w: Widgets, job: Any, tabs: Any, show: Show, outputs: list[Any], inputs: list[Any]
    ) -> None:
        """Connect the buttons with the form and with the tab that draws."""

        def drawing(start: Start) -> Callable[..., AsyncIterator[Any]]:
            async def draw(request: gr.Request, job: str, mark: Chosen) -> AsyncIterator[Any]:
                async for out in show(job, start(self.history(request), mark)):
                    yield out

            return draw

        changes = {self.vary: wishes.variation, self.enlarge: wishes.enlarged}
        for sides, button in self.extend.items():
            changes[button] = partial(wishes.wider, sides=sides)
        starts: dict[Any, Start] = {self.again: History.again}
        starts |= {b: partial(History.begun, changes=change) for b, change in changes.items()}
        for button, start in starts.items():
            button.click(to_picture, None, tabs, **QUIET)
            button.click(drawing(start), [job, self.chosen], outputs, **DRAWING)
        # the editor takes a picture once it is seen, so it is unfolded first
        opened = self.use.click(unfolded, None, w["begin"], **QUIET).then(None, js=_SEEN)
        opened.then(self.as_input, self.chosen, [w["canvas"], w["shape"]], **QUIET)
        taken = self.back.click(self.unfold_for, self.chosen, w["begin"], **QUIET)
        taken = taken.then(self.settings, self.chosen, inputs, **QUIET)
        taken.then(None, js=_FOCUS)

    def history(self, request: gr.Request) -> History:
        """What this visitor drew."""
        return History(self.studio, client_of(request))

    def tell(self, request: gr.Request, mark: Chosen) -> str:
        """The settings of a picture in words."""
        try:
            return self.history(request).told(mark)
        except InputError:
            return ""

    def as_input(self, request: gr.Request, mark: Chosen) -> list[Any]:
        """The picture in the editor."""
        picture = told_in_words(lambda: self.history(request).picture(mark))
        shape = wishes.nearest_shape(picture.size)
        return [wishes.on_canvas(picture), shape]

    def unfold_for(self, request: gr.Request, mark: Chosen) -> Any:
        """Room for the picture that this one began from, if it did."""
        values = told_in_words(lambda: self.history(request).widgets(mark))
        return gr.skip() if values["canvas"] is None else unfolded()

    def settings(self, request: gr.Request, mark: Chosen) -> list[Any]:
        """The settings of a picture in the widgets."""
        values = told_in_words(lambda: self.history(request).widgets(mark))
        return [values[name] for name in wishes.WISHES]


def tool(name: str, **settings: Any) -> Any:
    """One button."""
    kind = name.split()[0].lower()
    return gr.Button(name, size="sm", min_width=90, elem_classes=kind, **settings)


def unfolded() -> Any:
    """The fold of the editor, open."""
    return gr.update(open=True)


def to_picture() -> Any:
    """Show the tab that draws."""
    return gr.Tabs(selected="picture")
