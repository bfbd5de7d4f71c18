"""Samples a second of our training step, against a plain loop on diffusers' transformer.

    python benchmarks/train_step.py [--part time-12M …] [--quick] [--out FOLDER]

All sides have the same shapes, weights, optimiser (AdamW), batches and dtype (float32). Each lives
in a process of its own, which tells its peak of memory, and they take turns step by step. That they
are the same network is checked first. The plain loop is what people write: diffusers' transformer,
scheduler and EMAModel, clip_grad_norm_, torch's AdamW as it comes. Ours is the trainer's: eager,
and with blocks compiled. Parts, each of some minutes:

    time-12M      whole steps: forward, backward, clipping, AdamW, average
    time-padded   the same with texts padded to 120 tokens, as scripts for PixArt do
    time-XL       forward and backward with checkpointing at XL/2, 256 px
    busy          the share of a run's time in which the step waits for no data

Times are medians, with the quartiles; "of CPU" is the ratio of the processor's seconds, which other
work on the machine moves less, most of all with OMP_NUM_THREADS=1. The GEMM peak is the best of
products of three sizes in the same run. Results are gathered in FOLDER/train_step.json, and drawn.
"""

import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import parser
from train_sides import LENGTHS, SIDES, SIZES, batch_of, model_of, side_of

from pixsigma.training.pages import keep_pages
from pixsigma.training.recipe import Recipe
from pixsigma.training.trainer import Trainer


def gemm_peak(sides: tuple[int, ...]) -> float:
    """Products of this machine, in 10⁹ operations a second: the best of some."""
    best = 0.0
    for side in sides:
        a, b = torch.randn(2, side, side)
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


def alone(name: str, size: str, whole: bool, padded: int) -> None:
    """One side in this process: tells what it is, then takes a step for every line it is given."""
    if name != "diffusers":
        keep_pages()  # as the trainer does
    loaded = "diffusers" if name == "diffusers" else "ours"
    side_of(loaded, "quick", whole).step(batch_of("quick"))  # libraries
    gc.collect()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**30
    side, batch = side_of(name, size, whole), batch_of(size, padded or None)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(batch.latents.shape, generator=rng)
    answer = side.answer(x, torch.randint(0, 1000, (len(x),), generator=rng), batch)
    for _ in range(2):  # compiled, and the optimiser's state made
        side.step(batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - before
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
        self.told: dict[str, Any] = json.loads(self.line())

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


def times(
    names: tuple[str, ...], size: str, whole: bool, rounds: int, padded: int = 0
) -> dict[str, Any]:
    """Some sides by turns; of XL/2 one after the other is in memory."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    told: dict[str, dict[str, Any]] = {}
    if size == "XL/2":
        for name in names * 2:
            side = Process(name, size, int(whole), padded)
            taken[name] += [side.step() for _ in range(2)]
            told[name] = side.told
            side.end()
    else:
        sides = {name: Process(name, size, int(whole), padded) for name in names}
        for _ in range(rounds):
            for name, side in sides.items():
                taken[name].append(side.step())
        for name, side in sides.items():
            told[name] = side.told
            side.end()
    answers = {name: torch.tensor(each.pop("answer")) for name, each in told.items()}
    truth = answers.pop("diffusers")
    error = max(float((answer - truth).norm() / truth.norm()) for answer in answers.values())
    if error > 1e-4:
        raise SystemExit(f"the sides are not the same network: relative error {error:.1e}")
    peak = gemm_peak((256,) if size == "quick" else (512, 1024, 2048))
    found: dict[str, Any] = {"gemm_gflops": peak, "relative_error": error, "rounds": rounds}
    found["threads"] = torch.get_num_threads()
    plain, plain_cpu = map(statistics.median, zip(*taken["diffusers"], strict=True))
    for name, pairs in taken.items():
        seconds, cpu = zip(*pairs, strict=True)
        low, middle, high = statistics.quantiles(seconds, n=4)
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
        features = write_shards(Path(folder), size, num=32 * SIZES[size]["batch"])
        told = model_of(size).config
        recipe = Recipe(
            features=features,
            model={
                "num_layers": told.num_layers,
                "num_attention_heads": told.num_attention_heads,
                "attention_head_dim": told.attention_head_dim,
                "caption_channels": told.caption_channels,
                "sample_size": told.sample_size,
                "interpolation_scale": told.interpolation_scale,
            },
            optimizer={"learning_rate": 1e-4},
            run={"steps": steps + 2, "batch_size": SIZES[size]["batch"], "device": "cpu"},
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
    if "busy" in results:
        lines.append(f"\nbusy: {results['busy']['busy']:.1%}")
    return "\n".join(lines)


def at_rate(told: dict[str, Any], seconds: float) -> float:
    """Pictures a second at other seconds."""
    return float(told["pictures_per_second"] * told["seconds"] / seconds)


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of the ratios."""
    from matplotlib.figure import Figure

    timed = {part: found for part, found in results.items() if part.startswith("time")}
    if not timed:
        return
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(SIDES):
        places = [j + 0.27 * (i - 1) for j in range(len(timed))]
        bars = axes.bar(
            places, [found[name]["ratio"] for found in timed.values()], 0.25, label=name
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1.3, color="grey", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(timed)), list(timed))
    axes.set_ylabel("pictures a second\nagainst diffusers")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run the parts, gather, print the table."""
    flags = parser(__doc__ or "")
    names = ("time-12M", "time-padded", "time-XL", "busy")
    flags.add_argument("--part", choices=names, action="append")
    ours = SIDES[:-1]
    flags.add_argument("--sides", nargs="+", choices=ours, default=ours, help="of ours")
    flags.add_argument("--alone", nargs=4, metavar=("SIDE", "SIZE", "WHOLE", "PADDED"))
    arguments = flags.parse_args()
    if arguments.alone:
        name, size, whole, padded = arguments.alone
        alone(name, size, bool(int(whole)), int(padded))
        return
    quick, rounds, sides = arguments.quick, arguments.rounds, (*arguments.sides, "diffusers")
    small, xl = ("quick", "quick") if quick else ("12M", "XL/2")
    runs: dict[str, Callable[[], Any]] = {
        "time-12M": lambda: times(sides, small, True, rounds),
        "time-padded": lambda: times(sides, small, True, rounds, padded=120),
        "time-XL": lambda: times(("ours", "diffusers"), xl, False, rounds),
        "busy": lambda: busy(small, 3 if quick else 30),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "train_step.json"
    results = json.loads(file.read_text()) if file.is_file() and not quick else {}
    for part in arguments.part or names:
        results[part] = runs[part]()
        file.write_text(json.dumps(results, indent=2) + "\n")
    draw(results, arguments.out / "train_step.png")
    print(table(results))


if __name__ == "__main__":
    main()
