"""The bar that tells the stages of a drawing, on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from pixsigma.denoising import Step


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A bar that vanishes at the end; it shows nothing when quiet or not on a terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(compact=True),
    )
    hidden = quiet or not console.is_terminal
    # rich would send what is printed meanwhile to stderr; results belong on stdout
    with Progress(
        *columns, console=console, transient=True, disable=hidden, redirect_stdout=False
    ) as bar:
        yield bar


@contextmanager
def stage(description: str, quiet: bool) -> Iterator[None]:
    """A stage of unknown length."""
    with progress_bar(quiet) as bar:
        bar.add_task(description, total=None, count="")
        yield


def watch_many(
    steps: Iterator[tuple[int, Step]], num: int, quiet: bool
) -> Iterator[tuple[int, Step, float]]:
    """Show every step; yield (which request, its last step with the pictures, its seconds)."""
    began: dict[int, float] = {}
    shown: dict[int, TaskID] = {}
    with progress_bar(quiet) as bar:
        for k, step in steps:
            began.setdefault(k, time.perf_counter())
            title = f"{k + 1}/{num} " if num > 1 else ""
            if k not in shown:
                shown[k] = bar.add_task(title, total=None, count="")
            task = shown[k]
            counted = step.stage == "denoising"
            bar.update(
                task,
                description=f"{title}{step.stage}",
                completed=step.index if counted else 0,
                count=f"{step.index}/{step.total}" if counted else "",
            )
            bar.tasks[bar.task_ids.index(task)].total = step.total if counted else None
            if step.stage == "done":
                bar.remove_task(task)
                yield k, step, time.perf_counter() - began.pop(k)
