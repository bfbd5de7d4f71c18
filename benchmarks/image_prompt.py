"""Does a drawing show what its image prompt shows: retrieval by a classifier of photographs.

    python benchmarks/image_prompt.py --data DATA --prompt NET --out scores [--size 256]

DATA is what `recipes/mini/data.py` makes; NET an image prompt. Pictures are of pairs of thing and
style that training never saw, and of an artist whom it never saw. Each is given as image prompt
beside the empty text, so that nothing else tells what to draw; the drawing is right when the real
picture most like it, of all 305 things in three styles, shows the thing (`top1`), or one of the
five nearest things is it (`top5`); `colours` is how far the colours in the middle of the drawing
are those of the picture (the shared part of two histograms of 4 x 4 x 4 colours). "Another's" are
the same drawings beside other things: what chance gives. "Real" are the pictures themselves,
without the one that is asked about among the references. Writes image-prompt.json and prompts.png
(pictures; below each what it gives beside the empty text, and beside "on a yellow background").
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from common import parser, positive, sheet
from numpy.typing import NDArray
from PIL import Image

from pixsigma.evaluation.features import extract, on_white
from pixsigma.evaluation.questions import Questions, spread
from pixsigma.evaluation.retrieval import rank, shares
from pixsigma.measuring import columns, write_report
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.requests import request_from
from pixsigma.weights.files import atomic_write

GROUND = "on a yellow background"


def drawings(
    pipe: PixArtSigmaPipeline, flags: Namespace, rows: list[dict[str, Any]], text: str
) -> list[Image.Image]:
    """One picture a row, beside this text."""
    requests = [
        request_from(
            prompt=text,
            width=flags.size,
            height=flags.size,
            seed=k,
            num_inference_steps=flags.steps,
            guidance_scale=flags.guidance,
            control=[
                {"kind": "picture", "hint": str(flags.data / row["path"]), "network": flags.prompt}
            ],
        )
        for k, row in enumerate(rows)
    ]
    return [last.images[0] for last in pipe.draw_many(requests)]


def palette(picture: Image.Image) -> NDArray[np.float64]:
    """(64,): shares of the coarse colours in the middle, the half of the sides."""
    middle = np.asarray(picture.convert("RGB").resize((64, 64)))[16:48, 16:48] // 64
    counts = np.bincount((middle @ np.array([16, 4, 1])).ravel(), minlength=64)
    return counts / counts.sum()


def shared(drawn: list[Image.Image], pictures: list[Image.Image]) -> dict[str, float]:
    """How much of their colours drawings and pictures share, in the mean; 1 is all."""
    pairs = zip(map(palette, drawn), map(palette, pictures), strict=True)
    return {"colours": float(np.mean([np.minimum(a, b).sum() for a, b in pairs]))}


def figures(
    questions: Questions,
    rows: list[dict[str, Any]],
    drawn: list[Image.Image],
    pictures: list[Image.Image],
) -> dict[str, dict[str, float]]:
    """What is told of drawings, of the same beside other things, and of the pictures themselves."""
    things = [row["thing"] for row in rows]
    references = questions.references()
    features, real = extract(drawn), extract(pictures)
    others = references.where(list((references.features @ real.T).max(axis=1) < 1 - 1e-5))
    known = [k for k, thing in enumerate(things) if thing in others.names]
    return {
        "drawn": shares(rank(features, things, references)) | shared(drawn, pictures),
        "another's": shares(rank(features, things[1:] + things[:1], references))
        | shared(drawn, pictures[1:] + pictures[:1]),
        "real": shares(rank(real[known], [things[k] for k in known], others)),
    }


def main() -> None:
    """Draw, measure, write."""
    found = parser(__doc__ or "")
    found.add_argument("--data", type=Path, required=True, help="folder of recipes/mini/data.py")
    found.add_argument("--prompt", required=True, help="an image prompt")
    found.add_argument("--model", default="mini")
    found.add_argument("--size", type=int, default=256)
    found.add_argument("--num", type=positive, default=60, help="pictures of the unseen artist")
    found.add_argument("--steps", type=int, default=20)
    found.add_argument("--guidance", type=float, default=3.0)
    flags = found.parse_args()
    if flags.quick:
        flags.num, flags.steps = 3, 4
    questions = Questions(flags.data)
    unseen = [row for row in questions.rows("eval/index.jsonl") if row["style"] == "noto"]
    sets = {
        "unseen pairs": spread(questions.rows("held_out.jsonl"), 3 if flags.quick else None),
        "unseen artist": spread(unseen, flags.num),
    }
    pipe = PixArtSigmaPipeline.from_pretrained(flags.model)
    report: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(flags).items()}}
    shown: list[list[Image.Image]] = [[], [], []]
    for name, rows in sets.items():
        pictures = [on_white(Image.open(flags.data / row["path"])) for row in rows]
        drawn = drawings(pipe, flags, rows, "")
        report[name] = figures(questions, rows, drawn, pictures)
        chosen = spread(list(range(len(rows))), 6)
        some = drawings(pipe, flags, [rows[k] for k in chosen], GROUND)
        shown[0] += [pictures[k] for k in chosen]
        shown[1] += [drawn[k] for k in chosen]
        shown[2] += some
    flags.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(flags.out / "prompts.png") as temp:
        sheet(shown, 96).save(temp, format="PNG")
    write_report(flags.out / "image-prompt.json", report)
    told = [
        {"pictures": name, "which": which, **dict.fromkeys(report[name]["drawn"], ""), **each}
        for name in sets
        for which, each in report[name].items()
    ]
    print(columns(told))


if __name__ == "__main__":
    main()
