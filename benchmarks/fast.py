"""Quality against time of the shortcuts, on mini, relative to its own 50-step drawings.

    python benchmarks/fast.py --side 128       # at most eight minutes, or --minutes
    python benchmarks/fast.py --quick

For each setting: blocks and rows that were computed, as a share of those of 20 exact steps (which
no busy machine can blur) and seconds; PSNR and cosine of pooled latents to the 50-step drawing from
the same noise. What fewer exact steps would give at the same time is told beside it, and which
setting the preset of `--fast` should be: that of the least work which is better than that by half
a dB and no more than 3 dB worse than 20 exact steps. Settings that the time does not suffice for
are named.
"""

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser
from torch import Tensor

from pixsigma.fast_options import FAST, FastOptions
from pixsigma.measuring import columns, psnr, write_report
from pixsigma.models.blocks import Block
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.weights.files import atomic_write

PROMPTS = (
    "a red apple", "a lion, 3D", "a house on a yellow background", "a cactus in the desert",
    "a blue car, flat", "a fish in the sea", "a tree in a meadow", "a smiling face",
)  # fmt: skip


Fields = dict[str, Any]
"""Of a request."""


def settings(quick: bool) -> dict[str, Fields]:
    """Name to the fields of a request; fewer exact steps are what shortcuts must beat."""
    found: dict[str, Fields] = {}
    found |= {f"{n} exact steps": {"num_inference_steps": n} for n in (8, 10, 12, 14, 16, 20, 25)}
    for guided in (0.9, 0.75, 0.6, 0.5):
        found[f"guided {guided}"] = {"fast": FastOptions(guided=guided)}
    for gate in (0.7, 0.5, 0.3):
        found[f"gate {gate}"] = {"fast": FastOptions(gate=gate)}
    for cache in (0.05, 0.08, 0.12, 0.2, 0.3):
        for forecast in (False, True):
            name = f"cache {cache}{' forecast' if forecast else ''}"
            found[name] = {"fast": FastOptions(cache=cache, forecast=forecast)}
    for guided in (0.75, 0.5):
        for cache in (0.08, 0.12, 0.2):
            options = FastOptions(cache=cache, forecast=True, gate=0.5, guided=guided, longest=2)
            found[f"cache {cache} forecast, gate 0.5, guided {guided}"] = {"fast": options}
    found["preset"] = {"fast": FAST}
    for n in (12, 16):
        found[f"preset, {n} steps"] = {"fast": FAST, "num_inference_steps": n}
    return dict(list(found.items())[::6]) if quick else found


BETTER, WORSE = 0.5, 3.0
"""dB that a preset must be above exact steps of its time, and may be below 20 of them."""


def drawn(
    pipe: PixArtSigmaPipeline, fields: Fields, args: Namespace
) -> tuple[Tensor, Tensor, float, int]:
    """Pictures in [0, 1], latents, seconds, and rows through blocks."""
    rows = [0]
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given: rows.__setitem__(0, rows[0] + len(given[0]))
        )
        for module in pipe.transformer.modules()
        if isinstance(module, Block)
    ]
    began, latents = time.perf_counter(), list[Tensor]()
    for seed, prompt in enumerate(PROMPTS[: args.num]):
        steps = {"num_inference_steps": 20, "width": args.side, "height": args.side} | fields
        *_, last = (s for s in pipe.stream(prompt, seed=seed, **steps) if s.stage != "done")
        assert last.latents is not None
        latents.append(last.latents)
    seconds = time.perf_counter() - began
    for hook in hooks:
        hook.remove()
    together = torch.cat(latents)
    return (pipe.decode(together) / 2 + 0.5).clamp(0, 1), together, seconds, rows[0]


def cosine(found: Tensor, expected: Tensor) -> float:
    """Of latents averaged over squares of two, mean over pictures: composition, not pixels."""
    a, b = (torch.nn.functional.avg_pool2d(x, 2).flatten(1) for x in (found, expected))
    return float(torch.cosine_similarity(a, b).mean())


def judged(rows: list[dict[str, Any]]) -> str | None:
    """Mark the front, tell each setting's gain over exact steps, and which should be the preset."""
    exact = sorted((row for row in rows if row["exact"]), key=lambda row: row["time"])
    times, found = ([row[key] for row in exact] for key in ("time", "psnr"))
    for row in rows:
        row["gain"] = row["psnr"] - float(np.interp(row["time"], times, found))
        row["front"] = not any(
            other["time"] < row["time"] and other["psnr"] > row["psnr"] for other in rows
        )
    whole = next((row["psnr"] for row in exact if row["setting"] == WHOLE), float("inf"))
    good = [
        row
        for row in rows
        if not row["exact"] and row["gain"] >= BETTER and row["psnr"] >= whole - WORSE
    ]
    return min(good, key=lambda row: row["work"])["setting"] if good else None


WHOLE = "20 exact steps"


def flags() -> Namespace:
    found = parser(__doc__ or "")
    found.add_argument("--side", type=int, help="in pixels; that of the model unless given")
    found.add_argument("--minutes", type=float, default=8.0, help="no setting begins after these")
    args = found.parse_args()
    args.num = 2 if args.quick else len(PROMPTS)
    return args


def plot(path: Path, rows: list[dict[str, Any]], chosen: str | None) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="tight")
    axes = figure.subplots()
    groups = {"exact": "tab:gray", "guided": "tab:blue", "gate": "tab:orange", "cache": "tab:green"}
    for row in rows:
        first = row["setting"].split()[0].rstrip(",")
        kind = "exact" if row["exact"] else first
        mark = "*" if row["setting"] == chosen else "o" if row["front"] else "."
        axes.scatter(row["time"], row["psnr"], c=groups.get(kind, "tab:red"), marker=mark, s=60)
        if row["front"] or row["exact"]:
            axes.annotate(row["setting"], (row["time"], row["psnr"]), fontsize=5, rotation=12)
    exact = sorted((row["time"], row["psnr"]) for row in rows if row["exact"])
    axes.plot(*zip(*exact, strict=True), color="tab:gray", lw=1)
    axes.set_xlabel("seconds, as a share of 20 exact steps")
    axes.set_ylabel("PSNR to 50 exact steps, dB")
    axes.grid(alpha=0.3)
    with atomic_write(path) as temp:
        figure.savefig(temp, format="png", dpi=140)


def row_of(pipe: PixArtSigmaPipeline, name: str, fields: Fields, args: Namespace) -> dict[str, Any]:
    """One setting beside what `main` has drawn for all: 50 steps, and 20."""
    images, found, took, blocks = drawn(pipe, fields, args)
    quality = [psnr(a, b) for a, b in zip(images, args.reference, strict=True)]
    return {
        "setting": name,
        "exact": "fast" not in fields,
        "work": blocks / args.blocks,
        "time": took / args.seconds,
        "psnr": sum(quality) / len(quality),
        "worst": min(quality),
        "cosine": cosine(found, args.latents),
    }


def main() -> None:
    args = flags()
    deadline = time.monotonic() + 60 * args.minutes
    pipe = PixArtSigmaPipeline.from_pretrained("mini")
    args.side = args.side or pipe.default_size[0]
    args.reference, args.latents, *_ = drawn(pipe, {"num_inference_steps": 50}, args)
    *_, args.seconds, args.blocks = drawn(pipe, {}, args)
    todo, rows = settings(args.quick), []
    while todo and time.monotonic() < deadline:
        name = next(iter(todo))
        rows.append(row_of(pipe, name, todo.pop(name), args))
        print(f"{name}: {rows[-1]['time']:.2f} of the time, {rows[-1]['psnr']:.1f} dB", flush=True)
    chosen = judged(rows)
    report = {"side": args.side, "prompts": PROMPTS[: args.num], "chosen": chosen}
    write_report(args.out / "fast.json", report | {"left_out": list(todo), "rows": rows})
    plot(args.out / "fast.png", rows, chosen)
    print(columns([{key: row[key] for key in SHOWN} for row in rows]))
    print(f"left out for lack of time: {', '.join(todo)}" if todo else "every setting was drawn")
    print(f"preset: {chosen or 'none, fewer exact steps are as good'}")


SHOWN = ("setting", "work", "time", "psnr", "gain", "worst", "cosine", "front")


if __name__ == "__main__":
    main()
