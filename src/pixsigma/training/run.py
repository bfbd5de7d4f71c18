"""A run from its recipe to a model that draws: training, and what is kept beside the weights."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pixsigma.diffusion.samplers import DEFAULT_SAMPLER, LCM, get_sampler
from pixsigma.diffusion.samplers.base import Sampler
from pixsigma.errors import InputError, OutputError
from pixsigma.training.checkpoint import checkpoints
from pixsigma.training.curves import draw_curves
from pixsigma.training.recipe import Recipe
from pixsigma.training.trainer import Progress, Trainer
from pixsigma.training.validation import Validation, due
from pixsigma.weights.build import load_components
from pixsigma.weights.files import write_lines
from pixsigma.weights.folder import save_folder

METRICS, CURVES = "metrics.jsonl", "curves.png"


def train(
    recipe: Recipe, out: Path, *, resume: bool = False, stop: Callable[[], bool] = lambda: False
) -> Iterator[Progress]:
    """Train, and keep in `out`: checkpoints/, model/, metrics.jsonl, curves.png, samples/.

    Of an adapter adapter/ is kept in place of model/, of a ControlNet control/.
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
    try:
        yield from logged(trainer, out, stop)
        # The others find what the main process wrote; and no process exits while a thread of its
        # group still drops the last sum, for which it asks Python's lock.
        trainer.accelerator.wait_for_everyone()
    finally:
        for tracker in trainer.accelerator.trackers:
            tracker.finish()


def logged(trainer: Trainer, out: Path, stop: Callable[[], bool]) -> Iterator[Progress]:
    """The steps, with everything that is kept beside the checkpoints.

    All processes walk through the same lines, since they may hold the weights in parts; the main
    one looks and writes.
    """
    main = trainer.accelerator.is_main_process
    recipe = trainer.recipe
    looking = Validation(recipe, out, trainer.schedule, sampler_of(recipe)) if main else None
    save_beside(trainer, out)
    log = out / METRICS
    rows = [row for row in read_metrics(log) if row["step"] <= trainer.step]
    before = trainer.step
    try:
        for progress in trainer.run(stop):
            if due(recipe.validation, before, progress.step, progress.steps):
                model = trainer.averaged()
                found = looking.look(model, progress.step) if looking else {}
                progress = dataclasses.replace(progress, **found)
            before = progress.step
            rows.append(told(progress))
            if main:
                track(trainer, rows[-1])
                # all of them: a resumed run does some steps again, whose old rows must go
                write_lines(log, rows)
            yield progress
    except BaseException as error:
        if isinstance(error, GeneratorExit):
            trainer.save()
        with suppress(OutputError):  # on a full disk the first thing that failed is told
            draw_curves(rows if main else [], out / CURVES)
        raise
    draw_curves(rows if main else [], out / CURVES)


def track(trainer: Trainer, row: dict[str, Any]) -> None:
    """Tell a report's numbers to the trackers of the run."""
    accelerator = trainer.accelerator
    if not accelerator.log_with:
        return
    if not accelerator.trackers:
        accelerator.init_trackers(
            "pixsigma",
            config=flat(trainer.recipe.model_dump(mode="json")),
            init_kwargs={"wandb": {"dir": str(trainer.out)}},  # else beside where one stands
        )
    numbers = {k: v for k, v in row.items() if isinstance(v, float | int) and k != "step"}
    accelerator.log(numbers, step=row["step"])


def flat(values: dict[str, Any], before: str = "") -> dict[str, str]:
    """Keys with dots, values as words: what every tracker takes."""
    found: dict[str, str] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{before}{key}.") if inner else {before + key: str(value)}
    return found


def save_beside(trainer: Trainer, out: Path) -> None:
    """Write `out/model`: the transformer as it is, and the base's parts where one is named."""
    base = trainer.recipe.base
    if base is None or trainer.recipe.adapter is not None or trainer.recipe.control is not None:
        return
    model = trainer.averaged()
    if not trainer.accelerator.is_main_process:
        return
    parts = load_components(base, parts=("text_encoder", "autoencoder"))
    if (tokens := trainer.recipe.max_tokens) is not None and parts.text_encoder is not None:
        parts.text_encoder.tokenizer.max_length = tokens
    save_folder(
        out / "model",
        transformer=model,
        text_encoder=parts.text_encoder,
        autoencoder=parts.autoencoder,
        sampler=sampler_of(trainer.recipe),
        schedule=trainer.schedule,
        variant=parts.variant,
        # what was distilled has guidance inside
        guidance_scale=1.0 if trainer.recipe.distill else parts.guidance_scale,
    )


def sampler_of(recipe: Recipe) -> Sampler:
    """What the trained model is drawn with: few steps where few were learned."""
    # of the two spacings of LCM the one that diffusers' file can say
    return get_sampler(DEFAULT_SAMPLER) if recipe.distill is None else LCM(spacing="lcm-even")


def told(progress: Progress) -> dict[str, Any]:
    """A line of the metrics: what there is, without empty fields."""
    row = {key: value for key, value in vars(progress).items() if value is not None}
    return row | ({"picture": str(progress.picture)} if progress.picture else {})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines so far; a last line that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
