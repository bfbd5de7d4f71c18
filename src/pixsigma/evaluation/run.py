"""A whole evaluation: draw what the data asks, score it, lay out sheets, write the figures."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pixsigma.errors import InputError
from pixsigma.evaluation import sheets
from pixsigma.evaluation.compositions import RELATIONS, TASKS, Checker, Composition
from pixsigma.evaluation.distance import kernel_distance, nearest, share_of_copies, thumbnails
from pixsigma.evaluation.drawing import Settings, draw
from pixsigma.evaluation.features import Array, extract, read_picture
from pixsigma.evaluation.questions import MEASURES, Question, Questions, spread
from pixsigma.evaluation.retrieval import rank, shares
from pixsigma.images import check_writable
from pixsigma.weights.files import write_json, write_lines

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline

HELD_OUT, COMPOSED = "held_out", "compositions"

SCORES, OUTCOMES = "scores.json", "outcomes.jsonl"

ON_A_SHEET = 64


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to measure, and how."""

    measures: tuple[str, ...] = ()
    """None named is all that the data asks."""
    limit: int | None = None
    """Prompts a measure, or a task of compositions, at most; None is all of them."""
    images: int = 4
    """Pictures of each composition."""
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.measures) - set(MEASURES)):
            raise InputError(f"measures are {', '.join(MEASURES)}, got {', '.join(unknown)}")
        if self.images < 1:
            raise InputError(f"a composition is drawn at least once, got {self.images}")
        spread([], self.limit)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A picture was drawn."""

    measure: str
    done: int
    total: int


Outcome = dict[str, Any]


def evaluate(
    pipe: "PixArtSigmaPipeline", questions: Questions, out: Path, job: Job
) -> Iterator[Progress]:
    """Yield after every drawing; `out` gets scores.json, outcomes.jsonl and a sheet a measure.

    The figures are written after each measure, so that a stopped run leaves what it has measured.
    Raises InputError, OutputError, MissingExtraError and what drawing raises.
    """
    plan = _plan(questions, job)
    check_writable(out)
    _look_ahead(questions, plan)
    if job.settings.guidance is None:  # told as a number beside the scores
        job = replace(job, settings=replace(job.settings, guidance=pipe.default_guidance))
    scores: dict[str, Any] = {
        "model": pipe.name,
        "settings": asdict(job.settings) | {"limit": job.limit, "images": job.images},
    }
    outcomes: list[Outcome] = []
    for measure, asked in plan.items():
        pictures: list[Image.Image] = []
        for picture in draw(pipe, [each.prompt for each in asked], job.settings):
            pictures.append(picture)
            yield Progress(measure=measure, done=len(pictures), total=len(asked))
        score = _score_compositions if measure == COMPOSED else _score_retrieval
        found, rows = score(questions, measure, pictures, asked)
        scores |= found
        outcomes += [{"measure": measure, **row} for row in rows]
        _write(out, measure, pictures, asked, rows)
        write_json(out / SCORES, scores)
        write_lines(out / OUTCOMES, outcomes)


def _plan(questions: Questions, job: Job) -> dict[str, list[Any]]:
    """What is asked, by measure; raises InputError where that is nothing."""
    named = job.measures or tuple(each for each in MEASURES if questions.asks(each))
    if lacking := [measure for measure in named if not questions.asks(measure)]:
        raise InputError(f"{questions.folder} asks nothing of {', '.join(lacking)}")
    return {
        measure: _composed(questions, job)
        if measure == COMPOSED
        else spread(questions.retrieved[measure], job.limit)
        for measure in named
    }


def _look_ahead(questions: Questions, plan: dict[str, list[Any]]) -> None:
    """Read what drawings are scored by, so that what is wrong with it costs no drawing."""
    for measure, asked in plan.items():
        if measure == COMPOSED:
            names = [thing.name for each in asked for thing in each.things]
            questions.vocabulary().must_show(names)
            if any(each.task != "single" for each in asked):
                questions.training_thumbnails()
        else:
            questions.references().must_show(each.thing for each in asked)
        if measure == HELD_OUT and len(asked) > 1:
            kernel_figures(questions, questions.held_out())


def _composed(questions: Questions, job: Job) -> list[Composition]:
    """Every prompt `images` times, at most `limit` prompts of a task."""
    tasks = [[c for c in questions.compositions if c.task == task] for task in TASKS]
    chosen = [c for task in tasks for c in spread(task, job.limit)]
    return [c for c in chosen for _ in range(job.images)]


def _score_retrieval(
    questions: Questions, measure: str, pictures: Sequence[Image.Image], asked: Sequence[Question]
) -> tuple[dict[str, Any], list[Outcome]]:
    features = extract(pictures)
    ranks = rank(features, [each.thing for each in asked], questions.references())
    found: dict[str, Any] = {measure: {**shares(ranks), "num": len(asked)}}
    if measure == HELD_OUT and len(asked) > 1:
        found["kernel_distance"] = kernel_figures(questions, features)
    rows = [
        {"prompt": each.prompt, "thing": each.thing, "rank": int(r), "right": bool(r < 1)}
        for each, r in zip(asked, ranks, strict=True)
    ]
    return found, rows


def kernel_figures(questions: Questions, drawn: Array) -> dict[str, float]:
    """Distance of drawings (n, 1280) to the held-out pictures, between a floor and a ceiling.

    The floor is what other real pictures of the held-out ones' kind reach, the ceiling what the
    held-out pictures reach when nothing but eight by eight colours is left of them.
    """
    paths = [questions.folder / row["path"] for row in questions.rows("held_out.jsonl")]
    real = questions.held_out()
    others = questions.references().of_styles(questions.held_out_styles())
    different = (others.features @ real.T).max(axis=1) < 1 - 1e-5
    blurred = [read_picture(path).resize((8, 8), Image.Resampling.BOX) for path in paths]
    return {
        "distance": kernel_distance(drawn, real),
        "floor": kernel_distance(others.features[different], real),
        "ceiling": kernel_distance(extract(blurred), real),
    }


def _score_compositions(
    questions: Questions,
    measure: str,
    pictures: Sequence[Image.Image],
    asked: Sequence[Composition],
) -> tuple[dict[str, Any], list[Outcome]]:
    checker = Checker(questions.vocabulary())
    right = [checker.check(p, each) for p, each in zip(pictures, asked, strict=True)]
    rows = [
        {"prompt": each.prompt, "task": each.task, "relation": each.relation, "right": r}
        for each, r in zip(asked, right, strict=True)
    ]
    unseen = [p for p, each in zip(pictures, asked, strict=True) if each.task != "single"]
    found: dict[str, Any] = {measure: task_figures(rows)}
    if unseen:
        found["copies"] = copy_figures(questions, unseen)
    return found, rows


def copy_figures(questions: Questions, unseen: Sequence[Image.Image]) -> dict[str, float]:
    """Share of drawings that are near-duplicates of a training picture.

    For drawings of what training never showed; a single thing, which it did, may look the same.
    """
    drawn, training = thumbnails(unseen), questions.training_thumbnails()
    return {
        "share": share_of_copies(drawn, training),
        "median_correlation": float(np.median(nearest(drawn, training))),
        "num": len(unseen),
    }


def task_figures(rows: Sequence[Outcome]) -> dict[str, Any]:
    """Share of right drawings for each task and relation; the mean is over tasks, as GenEval's."""

    def shares_by(key: str, names: Sequence[str]) -> dict[str, float]:
        found = {name: [row["right"] for row in rows if row[key] == name] for name in names}
        return {name: sum(right) / len(right) for name, right in found.items() if right}

    tasks = shares_by("task", TASKS)
    return {
        "mean": sum(tasks.values()) / max(1, len(tasks)),
        **tasks,
        "relations": shares_by("relation", list(RELATIONS)),
        "num": len(rows),
    }


def _write(
    out: Path,
    measure: str,
    pictures: Sequence[Image.Image],
    asked: Sequence[Any],
    rows: Sequence[Outcome],
) -> None:
    """A sheet of at most 64 of the pictures, evenly spread, not picked."""
    chosen = spread(list(range(len(pictures))), ON_A_SHEET)
    page = sheets.contact_sheet(
        [pictures[i] for i in chosen],
        [asked[i].prompt for i in chosen],
        [bool(rows[i]["right"]) for i in chosen],
    )
    sheets.save(page, out / f"{measure}.png")
