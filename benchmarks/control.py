"""Do drawings follow outlines: edge agreement on held-out pictures, with a ControlNet and without.

    python benchmarks/control.py --data DATA --control NET --out scores [--size 256]

DATA is what `recipes/mini/data.py` makes; NET a ControlNet for edges. Outlines are those of pairs
of thing and style that training never saw: as they lie in DATA (`--pictures held_out.jsonl`), or
mirrored, turned, smaller and elsewhere (`held_out_moved.jsonl`, of `recipes/mini/outlines.py`),
which a prompt cannot tell. Each is drawn under its thing's name
and the same seeds without the ControlNet and with it. Agreement is the F1 of edge pixels: precision
is the share of the drawing's edges (Canny, as the hint's) within one pixel of an edge of the hint,
recall the share of the hint's edges within one pixel of one of the drawing's. "Another's" is the
agreement of drawings that follow a hint with the hint of another picture: what chance gives;
"autoencoder" that of the real picture after encoding and decoding: what the model can reach.
Writes control.json, control.png and figures.png (hint, without, with).
"""

import statistics
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from common import parser, positive, sheet
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pixsigma.data.manifest import read_lines
from pixsigma.evaluation.questions import spread
from pixsigma.hints import edges
from pixsigma.images import signed, to_pil
from pixsigma.measuring import columns, write_report
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.requests import GenerationRequest
from pixsigma.weights.files import atomic_write

KINDS = ("without", "with", "another's", "autoencoder")


def edge_map(picture: Image.Image) -> NDArray[np.bool_]:
    """(height, width), true on an edge."""
    return np.asarray(edges(picture))[..., 0] > 0


def near(lines: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Edges and the pixels beside them."""
    wide = np.pad(lines, 1)
    height, width = lines.shape
    shifts = [wide[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.any(shifts, axis=0)


def agreement(drawn: NDArray[np.bool_], hint: NDArray[np.bool_]) -> float:
    """F1 of edge pixels up to one pixel; 0 where one of the two has no edge."""
    if not drawn.any() or not hint.any():
        return 0.0
    precision, recall = near(hint)[drawn].mean(), near(drawn)[hint].mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def drawings(
    pipe: PixArtSigmaPipeline, flags: Namespace, rows: list[dict[str, Any]], network: str | None
) -> list[Image.Image]:
    """One picture a row and seed."""
    requests = []
    for row in rows:
        control = {"kind": "edges", "hint": str(flags.data / row["path"]), "network": network}
        for seed in range(flags.seeds):
            asked = {
                "prompt": f"a {row['thing']}, {row['style']}",
                "width": flags.size,
                "height": flags.size,
                "seed": seed,
                "num_inference_steps": flags.steps,
                "guidance_scale": flags.guidance,
                "control": [control] if network else [],
            }
            requests.append(GenerationRequest.model_validate(asked))
    return [last.images[0] for last in pipe.draw_many(requests)]


def measured(flags: Namespace) -> tuple[dict[str, list[float]], list[list[Image.Image]]]:
    """Agreements by kind, and columns of hint, without, with."""
    rows = spread([row for _, row in read_lines(flags.data / flags.pictures)], flags.num)
    pipe = PixArtSigmaPipeline.from_pretrained(flags.model)
    side = flags.size, flags.size
    with_alpha = [Image.open(flags.data / row["path"]).convert("RGB") for row in rows]
    real = [ImageOps.fit(image, side, Image.Resampling.LANCZOS) for image in with_alpha]
    hints = [edge_map(image) for image in real]
    again = [to_pil(pipe.decode(pipe.encode_pictures(signed(image))))[0] for image in real]
    print(f"{len(rows) * flags.seeds} pictures without, then as many with", flush=True)
    plain = drawings(pipe, flags, rows, None)
    print("drawn without", flush=True)
    followed = drawings(pipe, flags, rows, str(flags.control))
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for k, hint in enumerate(hints):
        other = hints[(k + 1) % len(hints)]
        found["autoencoder"].append(agreement(edge_map(again[k]), hint))
        for i in range(k * flags.seeds, (k + 1) * flags.seeds):
            found["without"].append(agreement(edge_map(plain[i]), hint))
            found["with"].append(agreement(edge_map(followed[i]), hint))
            found["another's"].append(agreement(edge_map(followed[i]), other))
    shown = [
        [edges(real[k]), plain[k * flags.seeds], followed[k * flags.seeds]]
        for k in range(min(10, len(rows)))
    ]
    return found, shown


def summary(values: list[float]) -> dict[str, float]:
    """Median, quartiles, mean and how many."""
    low, middle, high = np.percentile(values, [25, 50, 75]).tolist()
    mean = statistics.fmean(values)
    return {"median": middle, "low": low, "high": high, "mean": mean, "num": len(values)}


def plot(told: dict[str, dict[str, float]], path: Path) -> None:
    """Medians with quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    medians = [told[kind]["median"] for kind in KINDS]
    spread = [
        [told[kind]["median"] - told[kind]["low"] for kind in KINDS],
        [told[kind]["high"] - told[kind]["median"] for kind in KINDS],
    ]
    axes.bar(KINDS, medians, yerr=spread, capsize=4, color=["0.7", "tab:blue", "0.85", "0.85"])
    axes.set_ylabel("F1 of edges")
    axes.set_ylim(0, 1)
    with atomic_write(path) as temp:
        figure.savefig(temp, format="png", dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Draw, measure, write."""
    found = parser(__doc__ or "")
    found.add_argument("--data", type=Path, required=True, help="folder of recipes/mini/data.py")
    found.add_argument("--control", type=Path, required=True, help="a ControlNet for edges")
    found.add_argument("--pictures", default="held_out_moved.jsonl", help="a list in DATA")
    found.add_argument("--model", default="mini")
    found.add_argument("--size", type=int, default=256)
    found.add_argument("--num", type=positive, default=30, help="outlines, spread over the list")
    found.add_argument("--seeds", type=positive, default=2)
    found.add_argument("--steps", type=int, default=20)
    found.add_argument("--guidance", type=float, default=3.0)
    flags = found.parse_args()
    if flags.quick:
        flags.num, flags.seeds, flags.steps = 3, 1, 4
    values, shown = measured(flags)
    told = {kind: summary(each) for kind, each in values.items()}
    better = [w > p for w, p in zip(values["with"], values["without"], strict=True)]
    report = {
        "agreement": told,
        "share_better_with": statistics.fmean(better),
        "settings": {k: str(v) for k, v in vars(flags).items() if k != "out"},
        "values": values,
    }
    flags.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(flags.out / "figures.png") as temp:
        sheet(list(zip(*shown, strict=True)), max(64, min(flags.size, 96))).save(temp, format="PNG")
    plot(told, flags.out / "control.png")
    write_report(flags.out / "control.json", report)
    print(columns([{"agreement": kind, **each} for kind, each in told.items()]))
    print(f"better with than without: {statistics.fmean(better):.0%} of {len(better)}")


if __name__ == "__main__":
    main()
