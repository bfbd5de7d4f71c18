"""`pixsigma evaluate`: how well a model draws what it is asked."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from pixsigma.cli import options


def evaluate(
    model: Annotated[str, typer.Argument(help="As for generate --model.")],
    data: Annotated[Path, typer.Option(help="Questions and real pictures; see docs/mini.md.")],
    out: Annotated[Path, typer.Option(help="A folder for sheets and scores.json.")],
    limit: Annotated[
        int | None, typer.Option(help="Prompts a measure (a task of compositions), at most.")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="things, held_out, synonyms or compositions; repeatable; default: all asked."
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Pictures of each composition.")] = 4,
    size: Annotated[int | None, typer.Option(help="Side in pixels; default: the model's.")] = None,
    steps: options.Steps = 20,
    guidance: options.Guidance = None,
    seed: Annotated[int, typer.Option(help="Of the first picture of a measure.")] = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: Annotated[bool, typer.Option("--json", help="The figures as one JSON object.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw what a folder of questions asks, and score the drawings."""
    from pixsigma.cli.fitting import choose_dtype
    from pixsigma.cli.progress import stage
    from pixsigma.evaluation.drawing import Settings
    from pixsigma.evaluation.features import network
    from pixsigma.evaluation.questions import Questions
    from pixsigma.evaluation.run import Job
    from pixsigma.images import check_writable
    from pixsigma.pipeline import PixArtSigmaPipeline
    from pixsigma.placement import choose_device

    settings = Settings(steps=steps, guidance=guidance, size=size, seed=seed)
    wanted = tuple(dict.fromkeys(measure or ()))
    job = Job(measures=wanted, limit=limit, images=images, settings=settings)
    questions = Questions(data)
    network()  # what scores the drawings must be there before anything is drawn
    check_writable(out)
    place = choose_device(device)
    with stage(f"loading {model}", quiet):
        pipe = PixArtSigmaPipeline.from_pretrained(model, torch_dtype=choose_dtype(dtype, place))
        pipe.to(place)
    tell(run(pipe, questions, out, job, quiet), out, json, quiet)


def run(pipe: Any, questions: Any, out: Path, job: Any, quiet: bool) -> dict[str, Any]:
    """Evaluate with a bar on stderr; return the figures."""
    from pixsigma.cli.progress import progress_bar
    from pixsigma.evaluation.run import SCORES
    from pixsigma.evaluation.run import evaluate as stages
    from pixsigma.weights.files import read_json

    with progress_bar(quiet) as bar:
        task = bar.add_task("reading what drawings are compared with", total=None, count="")
        for progress in stages(pipe, questions, out, job):
            bar.update(
                task,
                description=progress.measure,
                completed=progress.done,
                count=f"{progress.done}/{progress.total}",
            )
            bar.tasks[0].total = progress.total
    return read_json(out / SCORES)


def tell(scores: dict[str, Any], out: Path, json: bool, quiet: bool) -> None:
    """Say the figures on stdout."""
    if json:
        typer.echo(jsonlib.dumps({"path": str(out), **scores}))
    elif quiet:
        typer.echo(str(out))
    else:
        for measure, figures in scores.items():
            if measure not in ("model", "settings"):
                typer.echo(f"{measure:<16} {figures_told(figures)}")


def figures_told(figures: dict[str, Any]) -> str:
    """Names and values in one line."""
    flat = {k: v for k, v in figures.items() if isinstance(v, int | float)}
    return "  ".join(
        f"{name.replace('_', ' ')} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in flat.items()
    )
