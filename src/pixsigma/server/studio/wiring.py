"""What every part of the page needs to call the rest: who asks, and how it is answered."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from pixsigma.errors import InputError
from pixsigma.server.studio import wishes

EVERYBODY = "studio"
"""Whose jobs those of the page are, where there are no keys."""

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""How every event is answered: for the page alone, without Gradio's own bars."""

DRAWING: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "once", **QUIET}
"""How drawings run: as many as there are visitors, one for each."""

Widgets = dict[str, Any]


def client_of(request: gr.Request) -> str:
    """Whose jobs a visitor sees."""
    return getattr(request, "username", None) or EVERYBODY


def wish_of(values: tuple[Any, ...]) -> dict[str, Any]:
    """The values of the widgets by name."""
    return dict(zip(wishes.WISHES, values, strict=True))


def told_in_words(work: Callable[[], Any]) -> Any:
    """What `work` gives; its refusal as a message on the page."""
    try:
        return work()
    except InputError as error:
        raise gr.Error(str(error), title="That does not work") from error
