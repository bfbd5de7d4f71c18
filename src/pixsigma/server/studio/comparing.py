"""Grids on the page: many jobs, one table."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pixsigma.errors import PixsigmaError
from pixsigma.server.service import Status
from pixsigma.server.studio import grids, words
from pixsigma.server.studio.drawing import Mood, Studio, any_seed

LOOK_SECONDS = 0.3
"""Between two looks at the jobs of a grid."""

Axis: TypeAlias = tuple[str, str]
"""What a side goes over, and its values as they were typed."""


@dataclass(frozen=True)
class GridScene:
    """What the page shows of a grid; None leaves a part as it is."""

    words: str
    table: str | None = None
    ids: list[str] | None = None
    mood: Mood = "idle"


async def draw_grid(
    studio: Studio, wish: Mapping[str, Any], across: Axis, down: Axis, who: str, sure: bool = False
) -> AsyncIterator[GridScene]:
    """Draw every pair of values; what is heavy asks first, unless the person is sure."""
    try:
        columns, rows = grids.axis(*across), grids.axis(*down)
        fields = {"seed": any_seed()} | studio.fields(wish)  # the same in every cell
        cells = grids.cells(fields, (across[0], columns), (down[0], rows))
        if not sure and (asked := await asyncio.to_thread(heavy, studio, cells, wish, who)):
            yield GridScene(asked, mood="asking")
            return
        ids = await submit_all(studio, cells, wish["model"], who)
    except PixsigmaError as error:
        yield GridScene(words.wrong(error))
        return
    sides = (across[0], columns), (down[0], rows)
    before: Any = None
    while True:
        found = await asyncio.to_thread(lambda: [studio.status(id) for id in ids])
        states = [status.job.state if status else "deleted" for status in found]
        over = sum(status is None or status.job.over for status in found)
        if states != before:
            before = states
            table = grids.table([address(status) for status in found], *sides)
            busy = over < len(ids)
            yield GridScene(progress(found, over), table, ids, "busy" if busy else "idle")
        if over == len(ids):
            break
        await asyncio.sleep(LOOK_SECONDS)
    if "done" in states:
        saved = await asyncio.to_thread(saving, studio, found, columns, rows)
        yield GridScene(progress(found, over), table + saved, ids)


def heavy(
    studio: Studio, cells: Sequence[dict[str, Any]], wish: Mapping[str, Any], who: str
) -> str:
    """A warning, where the grid is heavy; by the cell of most work."""
    most = max(cells, key=lambda cell: cell["num_inference_steps"])
    weighed = studio.weigh(most, wish, who, num=len(cells))
    if weighed is None or not words.is_heavy(weighed[1]):
        return ""
    return words.warning(*weighed).replace("This is heavy.", f"{len(cells)} pictures are heavy.")


async def submit_all(
    studio: Studio, cells: Sequence[dict[str, Any]], model: str, who: str
) -> list[str]:
    """Accept all cells, or none; raises PixsigmaError."""
    ids: list[str] = []
    try:
        for cell in cells:
            ids.append((await asyncio.to_thread(studio.submit, cell, model, who)).id)
    except PixsigmaError:
        await asyncio.to_thread(stop_all, studio, ids)
        raise
    return ids


def stop_all(studio: Studio, ids: Sequence[str]) -> bool:
    """Cancel a grid; False where all of it is over."""
    stopped = [studio.stop(id) for id in ids]
    return any(stopped)


def progress(found: Sequence[Status | None], over: int) -> str:
    """How a grid stands."""
    failed = [s for s in found if s is not None and s.job.state == "failed"]
    told = words.sentence(failed[0]) if failed else ""
    if over < len(found):
        return words.bar(over, len(found), f"{over} of {len(found)} pictures") + told
    drawn = sum(status is not None and status.job.state == "done" for status in found)
    return words.note("done", f"{drawn} of {len(found)} pictures drawn.") + told


def address(status: Status | None) -> str | None:
    """Where a browser finds the picture of a job that is done."""
    if status is None or not status.job.files:
        return None
    return f"v1/jobs/{status.job.id}/results/{status.job.files[0]}"


def saving(
    studio: Studio, found: Sequence[Status | None], columns: Sequence[Any], rows: Sequence[Any]
) -> str:
    """A link that saves the grid as one picture; the picture is in the link."""
    buffer = io.BytesIO()
    pictures = [studio.image(status) for status in found]
    grids.sheet(pictures, columns, rows).save(buffer, "JPEG", quality=92)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f"<a class='save' download='grid.jpg' href='data:image/jpeg;base64,{data}'>"
        "Save as one picture</a>"
    )
