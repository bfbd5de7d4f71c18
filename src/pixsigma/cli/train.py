"""`pixsigma train`: a recipe to weights."""

import json as jsonlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixsigma.cli import options

if TYPE_CHECKING:
    from pixsigma.training.trainer import Progress


def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file: what to train, on what, how.")],
    out: Annotated[
        Path, typer.Option(help="Folder for weights, checkpoints, curves and samples.")
    ] = Path("run"),
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="section.key=value", help="Another value; repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on exactly where the last checkpoint stands.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a report.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a transformer by a recipe, or a chain of them; Ctrl-C is safe, --resume goes on."""
    from pixsigma.training.chain import is_chain, read_chain, train_chain
    from pixsigma.training.recipe import parse_override, read_recipe
    from pixsigma.training.run import train as steps

    overrides = dict(map(parse_override, change or []))
    chain = read_chain(recipe, overrides) if is_chain(recipe) else None
    plans = list(chain.recipes(out).values()) if chain else [read_recipe(recipe, overrides)]
    if int(os.environ.get("RANK", "0")) > 0:  # one of several processes speaks for all
        json, quiet = False, True
    for remark in () if json or quiet else [said for plan in plans for said in plan.remarks]:
        typer.echo(remark)
    with interruptible() as stopped:
        how: dict[str, Any] = {"resume": resume, "stop": lambda: bool(stopped)}
        reports = train_chain(chain, out, **how) if chain else steps(plans[0], out, **how)
        last = watch(reports, json, quiet)
    if stopped:
        raise KeyboardInterrupt(f"the checkpoint is written; go on with --out {out} --resume")
    if not (json or quiet):
        loss = f", loss {last.loss:.4f}" if last else ""
        steps_done = sum(plan.run.steps for plan in plans)
        where = out / chain.stage[-1].name if chain else out
        typer.echo(f"{where}  {steps_done:,} steps{loss}; see {where / 'curves.png'}")


@contextmanager
def interruptible() -> Iterator[list[Any]]:
    """A list that fills at the first Ctrl-C; a second one stops at once."""
    heard: list[Any] = []

    def hear(number: int, frame: Any) -> None:
        heard.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


def watch(reports: "Iterator[Progress]", json: bool, quiet: bool) -> "Progress | None":
    """Show every report; return the last."""
    from pixsigma.cli.progress import progress_bar
    from pixsigma.training.run import told

    last = None
    with progress_bar(quiet or json) as bar:
        task = bar.add_task("training", total=None, count="")
        for last in reports:
            speed = f"{last.samples_per_second:.0f} pictures/s"
            bar.update(
                task,
                description=f"{last.stage or ''} loss {last.loss:.4f}  {speed}".strip(),
                completed=last.step,
                total=last.steps,
                count=f"{last.step}/{last.steps}",
            )
            if json:
                typer.echo(jsonlib.dumps(told(last)))
            elif not quiet and last.picture is not None:
                held_out = (
                    "" if last.held_out_loss is None else f", held out {last.held_out_loss:.4f}"
                )
                typer.echo(f"step {last.step}: loss {last.loss:.4f}{held_out}; {last.picture}")
    return last
