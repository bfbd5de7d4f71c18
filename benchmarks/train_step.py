"""Samples a second of our training step, against a plain loop on diffusers' transformer.

    python benchmarks/train_step.py [--part 64px-bf16 …] [--sides ours] [--quick] [--out FOLDER]

All sides have the same shapes, weights, optimiser (AdamW), batches and precision. Each lives in a
process of its own, which tells its peak of memory, and they take turns step by step. That they are
the same network is checked first. The plain loop is what people write: diffusers' transformer,
scheduler and EMAModel, clip_grad_norm_, torch's AdamW as it comes, autocast for bf16. Ours is the
trainer's: eager, and with blocks compiled. Parts, all of them in about eight minutes on two cores:

    64px-fp32, 64px-bf16    whole steps of 12M weights: forward, backward, clipping, AdamW,
                            average; 64 pictures of 16 tokens
    128px-fp32, 128px-bf16  the same, 16 pictures of 64 tokens
    XL                      forward and backward with checkpointing at XL/2, 256 px, fp32
    busy                    the share of a run's time in which no step waits for data, at 64px-bf16

Times are medians, with the quartiles; "of CPU" is the ratio of the processor's seconds, which other
work on the machine moves less, most of all with OMP_NUM_THREADS=1. The GEMM peak is the best of
products of three sizes in the same run and precision. Results are gathered in
FOLDER/train_step.json, and drawn.
"""

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import parser, peak_memory
from train_sides import DTYPES, LENGTHS, SIDES, SIZES, batch_of, model_of, side_of

from pixsigma.measuring import Timing
from pixsigma.pages import keep_pages
from pixsigma.training.recipe import Recipe
from pixsigma.training.trainer import Trainer
from pixsigma.weights.files import write_json

PARTS = {
    "64px-fp32": ("64px", "fp32"),
    "64px-bf16": ("64px", "bf16"),
    "128px-fp32": ("128px", "fp32"),
    "128px-bf16": ("128px", "bf16"),
    "XL": ("XL/2", "fp32"),
}
"""What is timed: size and precision."""


def gemm_peak(sides: tuple[int, ...], dtype: torch.dtype) -> float:
    """Products of this machine, in 10⁹ operations a second: the best of some."""
    best = 0.0
    for side in sides:
        a, b = torch.randn(2, side, side).to(dtype)
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * side**3 / (time.perf_counter() - start) / 1e9)
    return best


def operations(step: Callable[[], object]) -> float:
    """Of matrix products in one step, counted by torch, in 10⁹."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops()) / 1e9


def alone(name: str, size: str, precision: str) -> None:
    """One side in this process: tells what it is, then takes a step for every line it is given."""
    if name != "diffusers":
        keep_pages()  # as the trainer does
    loaded = "diffusers" if name == "diffusers" else "ours"
    whole, dtype = size != "XL/2", DTYPES[precision]
    side_of(loaded, "quick", whole, dtype).step(batch_of("quick"))  # libraries
    gc.collect()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**30
    side, batch = side_of(name, size, whole, dtype), batch_of(size)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(batch.latents.shape, generator=rng)
    answer = side.answer(x, torch.randint(0, 1000, (len(x),), generator=rng), batch)
    for _ in range(2 if whole else 1):  # compiled, and the optimiser's state made
        side.step(batch)
    # not ru_maxrss, which begins with the peak of the process that started this one
    peak = peak_memory().all / 2**30 - before
    gflop = 0.0 if name == "compiled" else operations(lambda: side.step(batch))
    told = {"peak_gib": peak, "gflop": gflop, "answer": answer.flatten()[:4096].tolist()}
    print(json.dumps(told), flush=True)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        side.step(batch)
        print(time.perf_counter() - start, time.process_time() - cpu, flush=True)


class Process:
    """A side that another process is."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, __file__, "--alone", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.told: dict[str, Any] = {}

    def ready(self) -> "Process":
        """Wait for what it tells of itself."""
        self.told = json.loads(self.line())
        return self

    def line(self) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def step(self) -> tuple[float, float]:
        """Seconds of one step, and those of the processor in it."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, cpu = map(float, self.line().split())
        return wall, cpu

    def end(self) -> None:
        """No more steps."""
        self.process.communicate("")


def taken_by_turns(
    names: tuple[str, ...], size: str, precision: str, rounds: int
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, dict[str, Any]]]:
    """Seconds of every side's steps, and what it tells; of XL/2 one at a time is in memory."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    told: dict[str, dict[str, Any]] = {}
    if size == "XL/2":
        for name in names:
            side = Process(name, size, precision).ready()
            taken[name] = [side.step() for _ in range(3)]
            told[name] = side.told
            side.end()
        return taken, told
    sides = {name: Process(name, size, precision) for name in names}
    for side in sides.values():
        side.ready()
    for _ in range(rounds):
        for name, side in sides.items():
            taken[name].append(side.step())
    for name, side in sides.items():
        told[name] = side.told
        side.end()
    return taken, told


def times(names: tuple[str, ...], size: str, precision: str, rounds: int) -> dict[str, Any]:
    """Rates of some sides, what share of the machine's peak they reach, and their memory."""
    taken, told = taken_by_turns(names, size, precision, rounds)
    answers = {name: torch.tensor(each.pop("answer")) for name, each in told.items()}
    truth = answers.pop("diffusers")
    error = max(float((answer - truth).norm() / truth.norm()) for answer in answers.values())
    if error > (1e-4 if precision == "fp32" else 3e-2):
        raise SystemExit(f"the sides are not the same network: relative error {error:.1e}")
    peak = gemm_peak((256,) if size == "quick" else (512, 1024, 2048), DTYPES[precision])
    found: dict[str, Any] = {"gemm_gflops": peak, "relative_error": error}
    found["threads"] = torch.get_num_threads()
    plain, plain_cpu = map(statistics.median, zip(*taken["diffusers"], strict=True))
    for name, pairs in taken.items():
        seconds, cpu = zip(*pairs, strict=True)
        low, high = Timing(seconds).spread
        middle = statistics.median(seconds)
        work = told["ours" if name == "compiled" and "ours" in told else name]["gflop"]
        found[name] = {
            "seconds": middle,
            "quartiles": [low, high],
            "pictures_per_second": SIZES[size]["batch"] / middle,
            "gflop": work,
            "of_gemm_peak": work / middle / peak,
            "ratio": plain / middle,
            "cpu_seconds": statistics.median(cpu),
            "cpu_ratio": plain_cpu / statistics.median(cpu),
            "peak_gib": told[name]["peak_gib"],
        }
    return found


def busy(size: str, steps: int) -> dict[str, float]:
    """A real run on a folder of features: how much of its time the step does not wait for data."""
    with tempfile.TemporaryDirectory() as folder:
        features = write_shards(Path(folder), size, num=8 * SIZES[size]["batch"])
        told = model_of(size).config
        told_of_model = (
            *("num_layers", "num_attention_heads", "attention_head_dim"),
            *("caption_channels", "sample_size", "interpolation_scale"),
        )
        recipe = Recipe.model_validate(
            {
                "features": features,
                "model": {name: getattr(told, name) for name in told_of_model},
                "optimizer": {"learning_rate": 1e-4},
                "run": {
                    "steps": steps + 2,
                    "batch_size": SIZES[size]["batch"],
                    "device": "cpu",
                    "mixed_precision": "bf16",
                },
            }
        )
        trainer = Trainer(recipe, Path(folder) / "run")
        for trainer.step in range(2):
            trainer.training_step()
        trainer.reading.waited, start = 0.0, time.perf_counter()
        for trainer.step in range(2, steps + 2):
            trainer.training_step()
        whole = time.perf_counter() - start
    return {"busy": 1 - trainer.reading.waited / whole, "steps": steps, "seconds": whole}


def write_shards(folder: Path, size: str, num: int) -> Path:
    """Random pictures and texts as `pixsigma prepare` would have written them."""
    from safetensors.torch import save_file

    told, (least, most) = SIZES[size], LENGTHS[size]
    torch.manual_seed(0)
    ends = torch.randint(least, most + 1, (num,)).cumsum(0)
    tensors = {
        "mean": torch.randn(num, 4, told["side"], told["side"]).half(),
        "std": torch.rand(num, 4, told["side"], told["side"]).half(),
        "text": torch.randn(int(ends[-1]), told["text"]).half(),
        "text_offsets": torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
        "captions": torch.arange(num)[:, None],
        "caption_long": torch.zeros(num, 1, dtype=torch.bool),
    }
    save_file(tensors, folder / "0.safetensors")
    null = {
        "null_text": torch.zeros(1, most, told["text"]),
        "null_mask": torch.arange(most)[None] < 1,
    }
    save_file(null, folder / "null.safetensors")
    pixels = 8 * told["side"]
    shard = {"file": "0.safetensors", "rows": num, "height": pixels, "width": pixels}
    index = {"format": 1, "channels": 4, "factor": 8, "text_width": told["text"], "shards": [shard]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def table(results: dict[str, Any]) -> str:
    """What there is so far, in Markdown."""
    head = "| part | side | pictures/s (quartiles) | ratio | of CPU | of GEMM peak | peak GiB |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for part, found in results.items():
        for name in SIDES:
            if name in found:
                told = found[name]
                low, high = (at_rate(told, q) for q in reversed(told["quartiles"]))
                cells = [part, name, f"{told['pictures_per_second']:.2f} ({low:.2f} to {high:.2f})"]
                cells += [f"{told['ratio']:.2f}", f"{told['cpu_ratio']:.2f}"]
                cells += [f"{told['of_gemm_peak']:.0%}"]
                lines.append(f"| {' | '.join([*cells, format(told['peak_gib'], '.2f')])} |")
    for part, found in results.items():
        if "gemm_gflops" in found:
            lines.append(f"\n{part}: GEMM peak {found['gemm_gflops']:.0f} GFLOP/s")
    if "busy" in results:
        lines.append(f"\nbusy: {results['busy']['busy']:.1%}")
    return "\n".join(lines)


def at_rate(told: dict[str, Any], seconds: float) -> float:
    """Pictures a second at other seconds."""
    return float(told["pictures_per_second"] * told["seconds"] / seconds)


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of the ratios."""
    from matplotlib.figure import Figure

    timed = {part: found for part, found in results.items() if part in PARTS}
    if not timed:
        return
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(SIDES):
        ratios = {
            j: found[name]["ratio"] for j, found in enumerate(timed.values()) if name in found
        }
        places = [j + 0.27 * (i - 1) for j in ratios]
        bars = axes.bar(places, list(ratios.values()), 0.25, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1.3, color="grey", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(timed)), list(timed))
    axes.set_ylabel("pictures a second\nagainst diffusers")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run the parts, gather, print the table."""
    flags = parser(__doc__ or "", rounds=10)
    names = (*PARTS, "busy")
    flags.add_argument("--part", choices=names, action="append")
    ours = SIDES[:-1]
    flags.add_argument("--sides", nargs="+", choices=ours, default=ours, help="of ours")
    flags.add_argument("--alone", nargs=3, metavar=("SIDE", "SIZE", "PRECISION"))
    arguments = flags.parse_args()
    if arguments.alone:
        alone(*arguments.alone)
        return
    quick, sides = arguments.quick, (*arguments.sides, "diffusers")
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "train_step-quick" if quick else "train_step"  # what was gathered stays
    file = arguments.out / f"{name}.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for part in arguments.part or names:
        start = time.monotonic()
        if part == "busy":
            results[part] = busy("quick" if quick else "64px", 3 if quick else 30)
        else:
            size, precision = PARTS[part]
            # of XL/2 memory is in question, and a compiled step's is the eager one's
            compared = ("ours", "diffusers") if part == "XL" else sides
            told = "quick" if quick else size
            results[part] = times(compared, told, precision, arguments.rounds)
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
        write_json(file, results)
        draw(results, arguments.out / f"{name}.png")
    print(table(results))


if __name__ == "__main__":
    main()
