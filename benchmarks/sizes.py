"""A step of XL/2 from 256px to 4K, with and without KV compression: time and memory by tokens.

    python benchmarks/sizes.py --minutes 5                       # as far as it gets; call it again
    python benchmarks/sizes.py --minutes 5 --only 4096x4096      # one size
    python benchmarks/sizes.py --minutes 5 --blocks 2            # two blocks of each kind a size
    python benchmarks/sizes.py --minutes 5 --quantize int8       # into sizes-int8.json
    python benchmarks/sizes.py --tell                            # table and plot of what is there

One row (no guidance), random weights, fp32 or as `--quantize` says. A step at 4096px is 554 TFLOP
of attention and 68 of products, with KV compression 346 and 68: more than an hour on two cores in
fp32, half an hour with `int8` where the CPU has bf16. So it goes block by block: after each the
tokens are kept in `--state`, and the next call goes on from there. KV compression is that of the
paper: ratio 2 in the second half of the blocks. The first half is that of the plain network, which
is run once: a compressed step goes on from its tokens. With `--blocks N` only N blocks of each kind
are run; a step is told as if the others took as long as their mean. The table says how many were.
"""

import json
import resource
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import parser, peak_memory, random_transformer

from pixsigma.config import KVCompression, TransformerConfig
from pixsigma.measuring import columns, write_report
from pixsigma.quantize import quantized
from pixsigma.weights.files import atomic_write, write_json
from pixsigma.weights.quantized import CPU_MODES

SIZES = ("256x256", "512x512", "1024x1024", "2560x1440", "2048x2048", "3840x2160", "4096x4096")
HALF = 14
"""Blocks in each half of XL/2."""
COMPRESSED = KVCompression(layers=tuple(range(HALF, 2 * HALF)), ratio=2)


def flags() -> Namespace:
    found = parser(__doc__ or "")
    found.add_argument("--minutes", type=float, default=5.0, help="no block begins after these")
    found.add_argument("--only", nargs="+", choices=SIZES, default=SIZES, metavar="WxH")
    found.add_argument("--blocks", type=int, default=HALF, help=f"{HALF} is a whole step")
    found.add_argument("--state", type=Path, help="folder for tokens of steps that are not done")
    found.add_argument("--quantize", choices=CPU_MODES, help="products in fewer bits")
    found.add_argument("--tell", action="store_true", help="run nothing")
    args = found.parse_args()
    args.name = f"sizes-{args.quantize}" if args.quantize else "sizes"
    args.state = args.state or args.out / args.name
    if args.quick:
        args.only, args.blocks = SIZES[:1], 1
    return args


def main() -> None:
    """Run blocks until the time is over, then tell."""
    args = flags()
    args.state.mkdir(parents=True, exist_ok=True)
    if not args.tell:
        deadline = time.monotonic() + 60 * args.minutes
        for compressed in (False, True):
            todo = [size for size in args.only if not done(args, size, compressed)]
            if todo and time.monotonic() < deadline:
                run(args, todo, compressed, deadline)
    tell(args)


class Step:
    """A step that is run block by block, and what is known of it."""

    def __init__(self, args: Namespace, size: str, compressed: bool) -> None:
        name = f"{size}-{'compressed' if compressed else 'plain'}"
        self.first = HALF if compressed else 0
        self.file, self.kept = args.state / f"{name}.json", args.state / f"{name}.pt"
        self.half = args.state / f"{size}-half.pt"
        told = json.loads(self.file.read_text()) if self.file.is_file() else {}
        self.seconds: dict[str, float] = told.get("seconds", {})
        """Of blocks by number, of `enter` and of `leave`."""
        self.peak: int = told.get("peak", 0)
        """Bytes on top of the weights."""

    def todo(self, blocks: int) -> list[int]:
        """Numbers of the blocks that are still to be run, in order."""
        end = 2 * HALF if blocks == HALF else self.first + blocks
        return [i for i in range(self.first, end) if str(i) not in self.seconds]

    def begun(self, enter: Any) -> torch.Tensor:
        """The tokens as the last call left them, or as the first half did, or those that enter."""
        if self.kept.is_file():
            return torch.load(self.kept)
        self.seconds = {}
        if self.first and self.half.is_file():
            return torch.load(self.half)
        return self.timed("enter", enter)[0]

    def timed(self, name: str | int, call: Any) -> Any:
        """What a call gives; how long it took is kept."""
        began = time.perf_counter()
        found = call()
        self.seconds[str(name)] = time.perf_counter() - began
        return found

    def save(self, peak: int) -> None:
        """Write what is known by now."""
        self.peak = max(self.peak, peak)
        write_json(self.file, {"seconds": self.seconds, "peak": self.peak})


def done(args: Namespace, size: str, compressed: bool) -> bool:
    step = Step(args, size, compressed)
    return not step.todo(args.blocks) and "leave" in step.seconds


@torch.no_grad()
def run(args: Namespace, sizes: list[str], compressed: bool, deadline: float) -> None:
    """The steps of one kind, as far as the time goes."""
    config = replace(TransformerConfig(), kv_compression=COMPRESSED if compressed else None)
    net = random_transformer(config)
    net = quantized(net, args.quantize) if args.quantize else net
    text = torch.randn(1, 20, config.caption_channels, generator=torch.Generator().manual_seed(0))
    captions, (t, t0) = [net.read(text)], net.embed(torch.full((1,), 500.0))
    # layers that keep their weights once more, in the order of a kernel, make it when first asked
    tokens, grid = net.enter(torch.zeros(1, 4, 4, 4))
    net.through(tokens, t0, captions, grid)
    base = resident()
    for size in sizes:
        step = Step(args, size, compressed)
        width, height = map(int, size.split("x"))
        grid = height // 16, width // 16
        forget_peak()
        x = step.begun(partial(net.enter, torch.randn(1, 4, height // 8, width // 8)))
        for i in step.todo(args.blocks):
            if time.monotonic() > deadline:
                keep(x, step.kept)
                return
            x = step.timed(i, partial(net.through, x, t0, captions, grid, slice(i, i + 1)))
            step.save(peak_memory().all - base)
            if i == HALF - 1:
                keep(x, step.half)
            print(
                f"{size} compressed={compressed} block {i}: {step.seconds[str(i)]:.2f} s",
                flush=True,
            )
        answer = step.timed("leave", partial(net.leave, x, t, grid, variance=False))
        assert torch.isfinite(answer).all()
        step.save(peak_memory().all - base)
        step.kept.unlink(missing_ok=True)
        if compressed:
            step.half.unlink(missing_ok=True)
        del x, answer


def keep(tokens: torch.Tensor, path: Path) -> None:
    """Write them whole or not at all: the next call goes on from them."""
    with atomic_write(path) as temp:
        torch.save(tokens, temp)


def resident() -> int:
    """Bytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def forget_peak() -> None:
    """Let VmHWM begin anew from what is resident."""
    Path("/proc/self/clear_refs").write_text("5")


def rows_of(args: Namespace) -> Iterator[dict[str, Any]]:
    """What is known of each step."""
    for size in SIZES:
        width, height = map(int, size.split("x"))
        plain = Step(args, size, compressed=False)
        for compressed in (False, True):
            step = Step(args, size, compressed)
            if "leave" not in step.seconds or not blocks_of(plain):
                continue
            half = {i: took for i, took in blocks_of(plain).items() if i < step.first}
            blocks = half | blocks_of(step)
            # blocks of a kind are alike: those that were not run are as those that were
            first = [seconds for i, seconds in blocks.items() if i < HALF]
            second = [seconds for i, seconds in blocks.items() if i >= HALF] or first
            seconds = HALF * (mean(first) + mean(second))
            yield {
                "size": size,
                "tokens": (width // 16) * (height // 16),
                "compressed": compressed,
                "blocks_run": len(blocks),
                "seconds": seconds + plain.seconds["enter"] + step.seconds["leave"],
                "peak_bytes": max(plain.peak, step.peak),
            }


def blocks_of(step: Step) -> dict[int, float]:
    """Seconds by the number of the block."""
    return {int(name): value for name, value in step.seconds.items() if name.isdecimal()}


def law(rows: list[dict[str, Any]]) -> list[float]:
    """a, b of seconds = a N + b N², by least squares of relative errors."""
    tokens = np.array([row["tokens"] for row in rows], dtype=float)
    seconds = np.array([row["seconds"] for row in rows])
    terms = np.stack([tokens, tokens**2], axis=1) / seconds[:, None]
    found, *_ = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)
    return [float(part) for part in found]


def tell(args: Namespace) -> None:
    """JSON, a plot, a table."""
    rows = list(rows_of(args))
    kinds = {
        name: [row for row in rows if row["compressed"] == compressed]
        for name, compressed in (("plain", False), ("KV compression", True))
    }
    laws = {name: law(found) for name, found in kinds.items() if len(found) > 1}
    plain = {row["size"]: row["seconds"] for row in kinds["plain"]}
    for row in rows:
        row["gain"] = 1 - row["seconds"] / plain[row["size"]] if row["size"] in plain else None
    write_report(args.out / f"{args.name}.json", {"rows": rows, "laws": laws})
    if not rows:
        return
    plot(args.out / f"{args.name}.png", kinds, laws)
    print(columns([line(row) for row in rows]))
    for name, (a, b) in laws.items():
        print(f"{name}: seconds = {a:.3g} N + {b:.3g} N²; squares are half at N = {a / b:.0f}")


def line(row: dict[str, Any]) -> dict[str, object]:
    whole = row["blocks_run"] == 2 * HALF
    return {
        "size": row["size"],
        "tokens": row["tokens"],
        "KV compression": "yes" if row["compressed"] else "no",
        "seconds": row["seconds"],
        "from": "the whole step" if whole else f"{row['blocks_run']} blocks of {2 * HALF}, scaled",
        "less time": f"{row['gain']:.0%}" if row["compressed"] and row["gain"] is not None else "",
        "peak GB beside weights": row["peak_bytes"] / 1e9,
    }


def plot(path: Path, kinds: dict[str, list[dict[str, Any]]], laws: dict[str, list[float]]) -> None:
    """Time and memory against the number of tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="tight")
    left, right = figure.subplots(1, 2)
    for i, (name, rows) in enumerate(kinds.items()):
        tokens = [row["tokens"] for row in rows]
        left.loglog(tokens, [row["seconds"] for row in rows], "o", color=f"C{i}", label=name)
        right.semilogx(tokens, [row["peak_bytes"] / 1e9 for row in rows], "o-", label=name)
        if name in laws and rows:
            n = np.geomspace(min(tokens), max(tokens), 60)
            a, b = laws[name]
            left.loglog(
                n, a * n + b * n**2, "-", color=f"C{i}", lw=1, label=f"{a:.2g} N + {b:.2g} N²"
            )
    left.set_ylabel("seconds a step, one row")
    right.set_ylabel("GB beside the weights, at the peak")
    right.set_yscale("symlog", linthresh=0.01)  # what fits in what was freed before is no GB at all
    for axes in (left, right):
        axes.set_xlabel("tokens")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
