"""Check what `pixsigma evaluate` measures on real pictures: `python recipes/mini/validate.py DATA`.

Retrieval: pictures of one artist are looked for among the others', under their names and under
shuffled ones. Compositions: layouts.py draws what the questions ask, and the checker must say yes;
against another prompt of the same task it must say no. Pictures reduced to the sizes that mini
draws tell what it could reach, and with `--vae` what its autoencoder leaves of that. Prints JSON.
"""

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from autoencoder import coded
from layouts import Plan, compose, questions
from PIL import Image
from sources import read_art, read_things

from pixsigma.evaluation.compositions import TASKS, Checker, Composition, Wanted
from pixsigma.evaluation.distance import share_of_copies, thumbnails
from pixsigma.evaluation.features import extract
from pixsigma.evaluation.questions import Questions
from pixsigma.evaluation.retrieval import References, rank, shares
from pixsigma.evaluation.run import kernel_figures
from pixsigma.images import signed, to_pil
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.weights.folder import read_autoencoder

STYLES = ("3D", "flat")
Scores = dict[str, Any]

Real = list[tuple[Plan, str, Image.Image]]
"""What was asked for, in which style, and a picture of it."""


def retrieval(references: References, seed: int = 0) -> Scores:
    """Shares for real pictures of each style among the other styles, and for shuffled names."""
    scores: Scores = {}
    for style in sorted(set(references.styles)):
        queries = references.of_styles([style])
        others = references.where([each != style for each in references.styles])
        scores[f"{style} among the others"] = shares(rank(queries.features, queries.things, others))
        shuffled = list(queries.things)
        random.Random(seed).shuffle(shuffled)
        scores[f"{style}, shuffled names"] = shares(rank(queries.features, shuffled, others))
    return scores


def asked(plan: Plan) -> Composition:
    """The plan as the evaluation reads it."""
    things = tuple(Wanted(name=p.name, colour=p.colour, count=p.count) for p in plan.parts)
    return Composition(task=plan.task, prompt=plan.prompt(), things=things, relation=plan.relation)


def real_pictures(art: dict[tuple[str, str], Image.Image], images: int, seed: int = 0) -> Real:
    """Each plan of the evaluation drawn by layouts.py `images` times in each style."""
    rng = random.Random(seed)
    return [
        (plan, style, compose(plan, style, art, rng)[0])
        for plan in questions()
        for style in STYLES
        for _ in range(images)
    ]


def shuffled(plans: list[Plan], seed: int = 0) -> list[Plan]:
    """For each plan another of its task that asks for other things, counts or places."""
    rng = random.Random(seed)
    return [
        rng.choice([p for p in plans if p.task == plan.task and _differs(p, plan)])
        for plan in plans
    ]


def _differs(a: Plan, b: Plan) -> bool:
    return (a.key, a.relation) != (b.key, b.relation)


def reduced(real: Real, side: int) -> Real:
    """The same in another size."""
    return [
        (plan, style, picture.resize((side, side), Image.Resampling.LANCZOS))
        for plan, style, picture in real
    ]


def decoded(real: Real, model: KLAutoencoder) -> Real:
    """What comes out of the autoencoder."""
    images = to_pil(coded(model, torch.cat([signed(picture) for *_, picture in real])))
    return [(plan, style, image) for (plan, style, _), image in zip(real, images, strict=True)]


def compositions(real: Real, vocabulary: References, strict: bool = False) -> Scores:
    """Shares of pictures that the checker says yes to, right and shuffled.

    `strict` takes the pictures of a drawing's own style away from things that have others.
    """
    checkers = {
        style: Checker(_without(vocabulary, style) if strict else vocabulary) for style in STYLES
    }
    plans = [plan for plan, _, _ in real]
    scores = {}
    for name, wanted in (("real", plans), ("shuffled", shuffled(plans))):
        right: dict[str, list[bool]] = {task: [] for task in TASKS}
        for (plan, style, picture), other in zip(real, wanted, strict=True):
            right[plan.task].append(checkers[style].check(picture, asked(other)))
        scores[name] = {task: _mean(found) for task, found in right.items()}
        scores[name]["mean"] = _mean(scores[name].values())
    return scores


def _without(vocabulary: References, style: str) -> References:
    return vocabulary.where([each != style for each in vocabulary.styles])


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return round(sum(found) / len(found), 3)


def main() -> None:
    """Read the command line and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder that data.py wrote")
    parser.add_argument("--images", type=int, default=1, help="pictures of a plan and style")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 128, 64])
    parser.add_argument("--vae", type=Path, help="folder of an autoencoder")
    args = parser.parse_args()
    opened = Questions(args.data)
    things = read_things(args.data / "packages", Path(__file__).with_name("things.txt"))
    real = real_pictures(read_art(args.data / "packages", things), args.images)
    references, vocabulary = opened.references(), opened.vocabulary()
    scores: Scores = {"retrieval": retrieval(references)}
    model = read_autoencoder(args.vae, dtype=torch.float32) if args.vae else None
    for side in args.sizes:
        small = reduced(real, side)
        scores[f"compositions, {side} px"] = compositions(small, vocabulary)
        if model is not None:
            found = compositions(decoded(small, model), vocabulary)
            scores[f"compositions, {side} px, encoded and decoded"] = found
    strict = compositions(reduced(real, 256), vocabulary, strict=True)
    scores["compositions, other styles' pictures"] = strict
    training = opened.training_thumbnails()
    unseen = [picture for plan, _, picture in real if plan.task != "single"]
    scores["copies among real unseen compositions"] = share_of_copies(thumbnails(unseen), training)
    noto = references.of_styles(["noto"])
    scores["kernel distance"] = {"noto": kernel_figures(opened, noto.features)["distance"]}
    scores["kernel distance"] |= kernel_figures(opened, extract(unseen[::4]))
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
