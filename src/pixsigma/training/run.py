"""A run from its recipe to a model that draws: training, and what is kept beside the weights."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pixsigma.diffusion.samplers import DEFAULT_SAMPLER, get_sampler
from pixsigma.errors import InputError
from pixsigma.training.checkpoint import checkpoints
from pixsigma.training.curves import draw_curves
from pixsigma.training.recipe import Recipe
from pixsigma.training.trainer import Progress, Trainer
from pixsigma.training.validation import Validation
from pixsigma.weights.build import load_components
from pixsigma.weights.files import atomic_write
from pixsigma.weights.folder import save_folder

METRICS, CURVES = "metrics.jsonl", "curves.png"


def train(
    recipe: Recipe, out: Path, *, resume: bool = False, stop: Callable[[], bool] = lambda: False
) -> Iterator[Progress]:
    """Train, and keep in `out`: checkpoints/, model/, metrics.jsonl, curves.png, samples/.

    `out/model` is a whole model wherever the recipe names a `base`. `stop` is asked after every
    step and ends the run with a checkpoint, as closing the generator does. Raises InputError
    before the first step where `out` holds a run and `resume` is not asked for.
    """
    if not resume and checkpoints(out):
        raise InputError(
            f"{out} holds a run already: go on with it (--resume), or choose another folder"
        )
    trainer = Trainer(recipe, out)
    if resume:
        trainer.resume()
    if not trainer.accelerator.is_main_process:
        yield from trainer.run(stop)
        return
    validation = Validation(recipe, out, trainer.schedule)
    save_beside(trainer, out)
    log = out / METRICS
    rows = [row for row in read_metrics(log) if row["step"] <= trainer.step]
    before = trainer.step
    try:
        for progress in trainer.run(stop):
            if validation.due(before, progress.step, progress.steps):
                found = validation.look(trainer.averaged(), progress.step)
                progress = dataclasses.replace(progress, **found)
            before = progress.step
            rows.append(told(progress))
            write_metrics(log, rows)
            yield progress
    except GeneratorExit:
        trainer.save()
        raise
    finally:
        draw_curves(rows, out / CURVES)


def save_beside(trainer: Trainer, out: Path) -> None:
    """Write `out/model`: the transformer as it is, and the base's parts where one is named."""
    base = trainer.recipe.base
    if base is None:
        return
    parts = load_components(base, parts=("text_encoder", "autoencoder"))
    save_folder(
        out / "model",
        transformer=trainer.averaged(),
        text_encoder=parts.text_encoder,
        autoencoder=parts.autoencoder,
        sampler=get_sampler(DEFAULT_SAMPLER),
        schedule=trainer.schedule,
        variant=parts.variant,
    )


def told(progress: Progress) -> dict[str, Any]:
    """A line of the metrics: what there is, without empty fields."""
    row = {key: value for key, value in vars(progress).items() if value is not None}
    return row | ({"picture": str(progress.picture)} if progress.picture else {})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines so far; a last line that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows: a resumed run does some steps again, whose old rows must go."""
    with atomic_write(path) as temp:
        temp.write_text("".join(json.dumps(row) + "\n" for row in rows))
