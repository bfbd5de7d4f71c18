"""How times are taken and told: interleaved rounds, medians with their spread, the machine."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixsigma._version import __version__
from pixsigma.models.products import cpu_has, has_onednn_linear, onednn_linear
from pixsigma.weights.files import atomic_write, write_json


@dataclass(frozen=True)
class Timing:
    """What a number of rounds took, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles; the extremes where there are fewer than four rounds."""
        if len(self.seconds) < 4:
            return min(self.seconds), max(self.seconds)
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high

    def over(self, other: "Timing") -> "Timing":
        """How many times as long as `other`, round by round, so that a slow minute counts twice."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return Timing(tuple(mine / theirs for mine, theirs in pairs))

    def told(self) -> dict[str, Any]:
        """For a JSON file."""
        low, high = self.spread
        return {"median": self.median, "low": low, "high": high, "rounds": list(self.seconds)}


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm: int = 1,
    before: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Time every variant once a round, in turns that begin elsewhere each time.

    A machine that is slow for a while is slow for all of them. `warm` rounds are not counted, nor
    is what `before` does for a variant.
    """
    names = list(variants)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            before(name)
            began = time.perf_counter()
            variants[name]()
            synchronize()
            if number >= 0:
                found[name].append(time.perf_counter() - began)
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def synchronize() -> None:
    """Wait until an accelerator has done what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def relative_error(found: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference, as a share of that of `expected`."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


def psnr(found: Tensor, expected: Tensor, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, peak]; infinite where they are equal."""
    error = (found.double() - expected.double()).square().mean()
    return float(10 * torch.log10(peak**2 / error))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a figure was measured on."""

    processor: str
    cores: int
    """That this process may use."""
    threads: int
    """Of torch."""
    capability: str
    """The instructions that torch found, such as AVX2 or AVX512."""
    vnni: bool
    """Whether there are instructions for products of 8-bit numbers."""
    accelerator: str
    torch: str
    pixsigma: str

    @classmethod
    def here(cls) -> "Machine":
        """This one."""
        return cls(
            processor=processor_name(),
            cores=len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            capability=torch.backends.cpu.get_cpu_capability(),
            vnni=cpu_has("vnni"),
            accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            torch=torch.__version__,
            pixsigma=__version__,
        )

    def __str__(self) -> str:
        instructions = f"{self.capability}{' with VNNI' if self.vnni else ''}"
        return f"{self.processor}, {self.threads} threads, {instructions}, torch {self.torch}"


def processor_name() -> str:
    """What the processor calls itself."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gemm_peak(size: int = 2048, rounds: int = 5) -> float:
    """GFLOP/s of the best of a few large float32 products by MKL and by oneDNN."""
    a, b, out = (torch.randn(size, size) for _ in range(3))
    variants: dict[str, Callable[[], Tensor]] = {"mkl": lambda: torch.mm(a, b, out=out)}
    if has_onednn_linear():
        variants["onednn"] = lambda: onednn_linear(a, b, None)
    timings = interleaved(variants, rounds).values()
    return 2 * size**3 / min(min(timing.seconds) for timing in timings) / 1e9


def write_report(path: Path, content: Mapping[str, Any]) -> None:
    """Write figures as JSON, with the machine that they are from."""
    write_json(path, {"machine": asdict(Machine.here()), **content})


def bars(
    path: Path,
    groups: Mapping[str, Mapping[str, Timing]],
    *,
    title: str,
    label: str,
) -> None:
    """Draw medians with their spread as bars: one cluster a group, one colour a name."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = Figure(figsize=(max(5.0, 1.2 * len(groups) * len(names) / 2), 3.6), layout="tight")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        places = [i + k * width for i, group in enumerate(groups.values()) if name in group]
        found = [group[name] for group in groups.values() if name in group]
        medians = [timing.median for timing in found]
        low = [timing.median - timing.spread[0] for timing in found]
        high = [timing.spread[1] - timing.median for timing in found]
        axes.bar(places, medians, width, yerr=[low, high], capsize=2, label=name)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(groups))], list(groups))
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7)
    with atomic_write(path) as temp:
        figure.savefig(temp, format=path.suffix.removeprefix(".") or "png", dpi=120)


def columns(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one shape as a table of plain text."""
    heads = list(rows[0])
    cells = [heads, *([shown(row[head]) for head in heads] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(heads))]
    lines = [
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def shown(value: Any) -> str:
    """Three figures are enough for a person."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_json(value: Mapping[str, Any]) -> str:
    """One line."""
    return json.dumps(value, ensure_ascii=False)
