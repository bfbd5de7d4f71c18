"""The pictures of `data.py` that a ControlNet learns outlines on, with their outlines, encoded.

    python recipes/mini/outlines.py DATA FEATURES [--size 256] [--model mini]

One thing each and two captions: compositions are left out, since a hint is learned from pictures,
and text costs the most to prepare. mini knows how each of its things lies, so an outline as it lies
in DATA tells next to nothing: things on a plain ground are also mirrored, turned, made smaller and
put elsewhere (DATA/moved), which the prompt does not say. DATA/outlines.jsonl tells which;
DATA/held_out_moved.jsonl has held-out pictures, moved, to measure with. A run that was stopped goes
on with the first file that is not there.
"""

import argparse
import random
import time
from pathlib import Path

import torch
from lines import Row, read_lines
from PIL import Image, ImageOps

from pixsigma.datatools.prepare import Settings, Work, prepare
from pixsigma.evaluation.questions import spread
from pixsigma.weights.files import write_lines


def moved(picture: Image.Image, rng: random.Random) -> Image.Image:
    """A picture of one thing on a plain ground: mirrored or not, turned, smaller, elsewhere."""
    ground, side = picture.getpixel((0, 0)), picture.width
    turned = ImageOps.mirror(picture) if rng.random() < 0.5 else picture
    turned = turned.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, fillcolor=ground)
    size = round(side * rng.uniform(0.5, 1.0))
    canvas = Image.new("RGB", picture.size, ground)
    corner = (round(rng.uniform(0, side - size)), round(rng.uniform(0, side - size)))
    canvas.paste(turned.resize((size, size), Image.Resampling.LANCZOS), corner)
    return canvas


def write_moved(data: Path, row: Row, name: str, rng: random.Random) -> Row:
    """Move a row's picture; returns the row of what was written."""
    path = f"moved/{name}-{Path(row['path']).name}"
    with Image.open(data / row["path"]) as picture:
        moved(picture.convert("RGB"), rng).save(data / path)
    return row | {"path": path}


def choose(data: Path, num: int | None, times: int) -> Path:
    """Write the rows of single things into a file of their own; `num` of them, spread over all.

    Those on a plain ground are moved `times` as well, and held-out pictures once.
    """
    rows = [row for row in read_lines(data / "captions.jsonl") if row["kind"] != "composition"]
    kept = spread(rows, num)
    (data / "moved").mkdir(exist_ok=True)
    rng = random.Random(0)
    plain = [row for row in kept if not row.get("composed")]
    kept += [write_moved(data, row, str(k), rng) for k in range(times) for row in plain]
    held_out = read_lines(data / "held_out.jsonl")
    write_lines(
        data / "held_out_moved.jsonl",
        [write_moved(data, row, f"held-out-{row['style'].lower()}", rng) for row in held_out],
    )
    told = [{"path": row["path"], "captions": row["captions"][:2]} for row in kept]
    write_lines(data / "outlines.jsonl", told)
    print(f"{len(told)} pictures of single things in {data / 'outlines.jsonl'}")
    return data / "outlines.jsonl"


def encode(listed: Path, features: Path, model: str, size: int, hints: str) -> None:
    """Encode the pictures of a list with their hints, with a line now and then."""
    settings = Settings(data=str(listed), model=model, resolution=size, square=True, hints=hints)
    said = time.monotonic()
    for progress in prepare(settings, features, Work(device=torch.device("cpu"))):
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"{progress.stage} {progress.done}/{progress.total}", flush=True)
    print(f"encoded in {features}")


def positive(text: str) -> int:
    """A whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be above 0, got {number}")
    return number


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """What is asked for wherever pictures are encoded with hints."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("data", type=Path)
    parser.add_argument("features", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="mini", help="whose text encoder and autoencoder")
    parser.add_argument("--num", type=positive, help="pictures, to see whether it works")
    return parser


def main() -> None:
    """Parse, choose, encode."""
    parser = parser_of(__doc__)
    parser.add_argument("--moved", type=int, default=3, help="times a picture is moved")
    args = parser.parse_args()
    encode(choose(args.data, args.num, args.moved), args.features, args.model, args.size, "edges")


if __name__ == "__main__":
    main()
