"""Quality against time of the shortcuts, on mini, relative to its own 50-step drawings.

    python benchmarks/fast.py [--quick]

For each setting: blocks and rows that were computed, as a share of those of 20 exact steps (which
no busy machine can blur) and seconds; PSNR and cosine of pooled latents to the 50-step drawing from
the same noise. The front and the preset of `--fast` are in the plot.
"""

import time
from argparse import Namespace
from pathlib import Path

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


def settings(quick: bool) -> dict[str, dict]:
    """Name to the fields of a request; fewer exact steps are what shortcuts must beat."""
    found = {f"{n} exact steps": {"num_inference_steps": n} for n in (8, 10, 12, 14, 16, 20, 25)}
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


def drawn(pipe: PixArtSigmaPipeline, fields: dict, num: int) -> tuple[Tensor, Tensor, float, int]:
    """Pictures in [0, 1], latents, seconds, and rows through blocks."""
    rows = [0]
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given: rows.__setitem__(0, rows[0] + len(given[0]))
        )
        for module in pipe.transformer.modules()
        if isinstance(module, Block)
    ]
    began, latents = time.perf_counter(), []
    for seed, prompt in enumerate(PROMPTS[:num]):
        steps = {"num_inference_steps": 20} | fields
        *_, last = (s for s in pipe.stream(prompt, seed=seed, **steps) if s.stage != "done")
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


def flags() -> Namespace:
    args = parser(__doc__ or "").parse_args()
    args.num = 2 if args.quick else len(PROMPTS)
    return args


def plot(path: Path, rows: list[dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="tight")
    axes = figure.subplots()
    groups = {"exact": "tab:gray", "guided": "tab:blue", "gate": "tab:orange", "cache": "tab:green"}
    for row in rows:
        first = row["setting"].split()[0].rstrip(",")
        kind = "exact" if "exact" in row["setting"] else first
        mark = "*" if kind == "preset" else "o"
        axes.scatter(row["work"], row["psnr"], c=groups.get(kind, "tab:red"), marker=mark, s=60)
        axes.annotate(row["setting"], (row["work"], row["psnr"]), fontsize=5, rotation=12)
    axes.set_xlabel("blocks computed, as a share of 20 exact steps")
    axes.set_ylabel("PSNR to 50 exact steps, dB")
    axes.grid(alpha=0.3)
    with atomic_write(path) as temp:
        figure.savefig(temp, format="png", dpi=140)


def main() -> None:
    args = flags()
    pipe = PixArtSigmaPipeline.from_pretrained("mini")
    reference, latents, *_ = drawn(pipe, {"num_inference_steps": 50}, args.num)
    *_, seconds, whole = drawn(pipe, {}, args.num)
    rows = []
    for name, fields in settings(args.quick).items():
        images, found, took, blocks = drawn(pipe, fields, args.num)
        quality = [psnr(a, b) for a, b in zip(images, reference, strict=True)]
        rows.append(
            {
                "setting": name,
                "work": blocks / whole,
                "time": took / seconds,
                "psnr": sum(quality) / len(quality),
                "worst": min(quality),
                "cosine": cosine(found, latents),
            }
        )
    write_report(args.out / "fast.json", {"prompts": PROMPTS[: args.num], "rows": rows})
    plot(args.out / "fast.png", rows)
    print(columns(rows))


if __name__ == "__main__":
    main()
