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


def watch(steps: Iterator[Step], title: str, quiet: bool) -> Step:
    """Show every step; return the last, which holds the pictures."""
    last = None
    with progress_bar(quiet) as bar:
        task = bar.add_task(title, total=None, count="")
        for last in steps:
            counted = last.stage == "denoising"
            bar.update(
                task,
                description=f"{title}{last.stage}",
                completed=last.index if counted else 0,
                count=f"{last.index}/{last.total}" if counted else "",
            )
            bar.tasks[0].total = last.total if counted else None
    assert last is not None and last.stage == "done", "a pipeline ends with its pictures"
    return last
