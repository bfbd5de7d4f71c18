"""Draw a small set to try training on: solids of one colour on a coloured ground, with captions.

    python recipes/shapes.py SHAPES [--num 600] [--seed 0]

Writes pictures of 128 px and a caption beside each, as `pixsigma prepare` reads them: a tenth into
SHAPES/held-out/, the others into SHAPES/train/.
"""

import argparse
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, SCALE = 128, 4
COLORS = {
    "red": "#d92b2b",
    "orange": "#f08a1d",
    "yellow": "#f2d024",
    "green": "#2e9e4f",
    "blue": "#2f6fdd",
    "purple": "#8540b5",
    "black": "#1d1d21",
    "white": "#fafafa",
}
CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
SHAPES = ("circle", "ring", "star", *CORNERS)


def corners(
    num: int, radius: float, middle: tuple[float, float], inner: float = 1.0
) -> list[float]:
    """x and y of a regular polygon that stands on a side; `inner` < 1 pulls every other one in."""
    flat = math.pi / num if num % 2 == 0 else 0.0
    count = num if inner == 1.0 else 2 * num
    points: list[float] = []
    for i in range(count):
        angle = -math.pi / 2 + flat + 2 * math.pi * i / count
        reach = radius * (inner if i % 2 and count > num else 1.0)
        points += [middle[0] + reach * math.cos(angle), middle[1] + reach * math.sin(angle)]
    return points


def picture(shape: str, color: str, ground: str, size: float, rng: random.Random) -> Image.Image:
    """One shape near the middle, smoothed by drawing it larger."""
    side = SIDE * SCALE
    image = Image.new("RGB", (side, side), COLORS[ground])
    draw = ImageDraw.Draw(image)
    x, y = (side * rng.uniform(0.45, 0.55) for _ in range(2))
    r = side * size
    if shape in CORNERS:
        draw.polygon(corners(CORNERS[shape], r, (x, y)), fill=COLORS[color])
    elif shape == "star":
        draw.polygon(corners(5, r, (x, y), inner=0.45), fill=COLORS[color])
    else:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=COLORS[color])
    if shape == "ring":
        draw.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=COLORS[ground])
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    """Parse, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for i in range(args.num):
        shape, large = rng.choice(SHAPES), rng.random() < 0.6
        color, ground = rng.sample(list(COLORS), 2)
        folder = args.out / "held-out" if i < args.num // 10 else args.out / "train"
        folder.mkdir(parents=True, exist_ok=True)
        size = rng.uniform(0.34, 0.42) if large else rng.uniform(0.16, 0.22)
        picture(shape, color, ground, size, rng).save(folder / f"{i:05}.png")
        measure = "large" if large else "small"
        caption = f"a {measure} {color} {shape} on a {ground} background"
        (folder / f"{i:05}.txt").write_text(caption + "\n")
    print(f"{args.num} pictures in {args.out}/train and {args.out}/held-out")


if __name__ == "__main__":
    main()
