"""Draw what the documentation shows of mini: things, styles, stages of training, curves.

    python recipes/mini/show.py MINI OUT [--runs run64 run128]

MINI is a whole model. RUNS are folders of `pixsigma train`, from weak to strong: their transformers
draw the same prompts with the same seeds, each at its own size. Seeds are counted, not picked.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from pixsigma import PixArtSigmaPipeline
from pixsigma.evaluation.drawing import Settings, draw
from pixsigma.evaluation.sheets import contact_sheet, save
from pixsigma.training.curves import running_mean
from pixsigma.training.run import METRICS, read_metrics
from pixsigma.weights.files import atomic_write
from pixsigma.weights.folder import read_transformer

THINGS = (
    "A small cactus with a happy face in the Sahara desert.",
    "a red apple",
    "a lion, flat",
    "a parrot",
    "a house, flat",
    "a car, flat",
    "a rocket",
    "a sun with a face",
)
SHOWN = ("cat", "lion", "whale", "cactus", "burger", "car", "castle", "guitar")
STYLES = (
    "a {}, 3D, on a white background",
    "a {}, flat, on a white background",
    "a {}, 3D, on a yellow background",
    "a flat vector drawing of a {} on a light blue background",
)
STAGES = (
    "a lion on a white background",
    "a castle, flat",
    "a red apple",
    "a whale on a yellow background",
    "two cats on a white background",
    "a dog to the left of a cat",
    "a red cube on top of a blue sphere",
    "a small cactus in the desert",
)
SIDE = 128


def sheet(
    pipe: PixArtSigmaPipeline, prompts: tuple[str, ...], columns: int = 8, side: int = SIDE
) -> Image.Image:
    """One drawing a prompt, the seed its place."""
    pictures = list(draw(pipe, prompts, Settings(guidance=3.0)))
    return contact_sheet(pictures, prompts, [None] * len(prompts), side=side, columns=columns)


def stages(mini: Path, runs: list[Path]) -> Image.Image:
    """A row of drawings for each run's transformer."""
    rows = []
    for run in runs:
        transformer = read_transformer(run / "model" / "transformer", dtype=torch.float32)
        rows.append(
            sheet(PixArtSigmaPipeline.from_pretrained(mini, transformer=transformer), STAGES)
        )
    page = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for i, row in enumerate(rows):
        page.paste(row, (0, i * row.height))
    return page


def curves(runs: list[Path], path: Path) -> None:
    """The losses of all runs, one behind the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    before = 0
    for run in runs:
        rows = read_metrics(run / METRICS)
        if not rows:
            raise SystemExit(f"{run} is no folder of a training: there is no step in {METRICS}")
        steps = [before + row["step"] for row in rows]
        axes.plot(steps, running_mean([row["loss"] for row in rows]), label=run.name)
        before = steps[-1]
    axes.set(xlabel="steps", ylabel="loss (running mean)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with atomic_write(path) as temp:
        figure.savefig(temp, format="png", dpi=100)


def main() -> None:
    """Parse, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mini", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = PixArtSigmaPipeline.from_pretrained(args.mini)
    save(sheet(pipe, THINGS, columns=4, side=256), args.out / "mini.png")
    prompts = tuple(style.format(thing) for style in STYLES for thing in SHOWN)
    save(sheet(pipe, prompts), args.out / "mini-styles.png")
    if args.runs:
        save(stages(args.mini, args.runs), args.out / "mini-stages.png")
        curves(args.runs, args.out / "mini-curves.png")


if __name__ == "__main__":
    main()
