"""The bar that tells the stages of a drawing, on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from pixsigma.denoising import Step


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A bar that vanishes at the end; it shows nothing when quiet or not on a terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(compact=True),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        yield bar


@contextmanager
def stage(bar: Progress, description: str) -> Iterator[None]:
    """A stage of unknown length."""
    task = bar.add_task(description, total=None, count="")
    try:
        yield
    finally:
        bar.remove_task(task)


def watch(steps: Iterator[Step], bar: Progress, title: str) -> Step:
    """Show every step; return the last, which holds the pictures."""
    task = bar.add_task(title, total=None, count="")
    last = None
    for last in steps:
        counted = last.stage == "denoising"
        bar.update(
            task,
            description=f"{title}{last.stage}",
            completed=last.index if counted else 0,
            count=f"{last.index}/{last.total}" if counted else "",
        )
        bar.tasks[bar.task_ids.index(task)].total = last.total if counted else None
    bar.remove_task(task)
    assert last is not None and last.stage == "done", "a pipeline ends with its pictures"
    return last
