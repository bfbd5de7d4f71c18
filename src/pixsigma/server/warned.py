"""Warnings that go to the drawing that they are about, whichever thread it is in."""

import warnings
from contextvars import ContextVar
from typing import Any

_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)


def hear() -> list[str]:
    """From now on the warnings of this context, such as a drawing's, are in the list returned.

    Those of other contexts go where they went.
    """
    if not getattr(warnings.showwarning, "tells_contexts", False):
        # not catch_warnings, which several threads cannot use at once
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _to_contexts(warnings.showwarning)
    found: list[str] = []
    _heard.set(found)
    return found


def _to_contexts(before: Any) -> Any:
    def show(message: Any, *rest: Any) -> None:
        found = _heard.get()
        if found is None:
            before(message, *rest)
        else:
            found.append(str(message))

    show.tells_contexts = True  # type: ignore[attr-defined]
    return show
