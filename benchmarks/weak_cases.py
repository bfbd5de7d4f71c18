"""The runs of `weak_to_strong.py`, and what is said of their results."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from pixsigma.config import TransformerConfig
from pixsigma.models.blocks import SelfAttention
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.validation import SHEET

A, B, C = "a: resolution", "b: compression", "c: autoencoder"
"""What is measured, as tables call it."""
ABOUT = {
    A: "Twice the side, with positions interpolated and as they were.",
    B: "Which half of the layers compresses keys and values (2 x 2), by what, from the end of (a).",
    C: "Another autoencoder, with the weights kept and with fresh ones.",
}
BEGIN, END = "<!-- figures: written by benchmarks/weak_to_strong.py -->", "<!-- end of figures -->"

Results = dict[str, dict[str, dict[str, float]]]
"""Held-out losses by group, case and step."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: what it changes in which model, and on which pictures."""

    group: str
    name: str
    features: str
    start: str | None = None
    """The case whose end it begins with; none is the weak model."""
    model: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[PixArtTransformer], None] = lambda model: None
    points: tuple[int, ...]
    """Steps after which it is looked at; it ends with the last."""
    draws: bool = False
    """Whether pictures are drawn at these points."""

    @property
    def folder(self) -> str:
        """Inside `--out`."""
        return f"{self.group[0]}-{self.name.replace(' ', '-')}"


def hold(weight: nn.Parameter) -> None:
    """Keep a weight as it is, whatever the optimiser is told."""
    weight.register_hook(torch.zeros_like)


def compressions(model: PixArtTransformer) -> list[SelfAttention]:
    """The layers that compress."""
    found = [m for m in model.modules() if isinstance(m, SelfAttention)]
    return [layer for layer in found if layer.compressed]


def average(model: PixArtTransformer) -> None:
    """Means of neighbours, never trained."""
    for layer in compressions(model):
        for parameter in layer.sr.parameters():
            hold(parameter)


def discard(model: PixArtTransformer) -> None:
    """The first of every square of tokens, the others thrown away."""
    for layer in compressions(model):
        nn.init.zeros_(layer.sr.weight)
        layer.sr.weight.data[..., 0, 0] = 1
    average(model)


def random_start(model: PixArtTransformer) -> None:
    """A convolution as torch starts one."""
    for layer in compressions(model):
        layer.sr.reset_parameters()


def fresh(model: PixArtTransformer) -> None:
    """Forget everything."""
    model.init_weights()


def cases(config: TransformerConfig, points: tuple[int, ...], short: int) -> list[Case]:
    """All runs of the three claims; those of compression end with the `short` step."""
    side, scale = config.sample_size, config.interpolation_scale
    kept = {"sample_size": 2 * side, "interpolation_scale": scale}
    higher = {"sample_size": 2 * side, "interpolation_scale": 2 * scale}
    seen: dict[str, Any] = {"points": points, "draws": True}
    found = [
        Case(group=A, name="interpolated", features="high", model=higher, **seen),
        Case(group=A, name="as they were", features="high", model=kept, **seen),
        Case(group=C, name="kept weights", features="swapped", **seen),
        Case(group=C, name="fresh", features="swapped", prepare=fresh, **seen),
    ]
    num, half = config.num_layers, config.num_layers // 2
    first = (num - half) // 2
    layers = {
        "shallow": range(half),
        "middle": range(first, first + half),
        "deep": range(num - half, num),
    }
    told: dict[str, Any] = {"group": B, "features": "high", "start": found[0].folder}
    told["points"] = tuple(point for point in points if point <= short)
    found.append(Case(name="none", **told))
    for name, where in layers.items():
        model = {"kv_compression": {"layers": list(where)}}
        found.append(Case(name=name, model=model, **told))
    kinds: dict[str, Callable[[PixArtTransformer], None]] = {
        "deep, random start": random_start,
        "deep, average": average,
        "deep, discard": discard,
    }
    for name, prepare in kinds.items():
        found.append(Case(name=name, model=model, prepare=prepare, **told))
    return found


def table(runs: dict[str, dict[str, float]]) -> list[str]:
    """Losses in Markdown, a row a case."""
    points = max((list(losses) for losses in runs.values()), key=len)
    lines = [f"| held-out loss after | {' | '.join(points)} |", "|---|" + "---|" * len(points)]
    for name, losses in runs.items():
        told = [f"{losses[point]:.4f}" if point in losses else "" for point in points]
        lines.append(f"| {name} | {' | '.join(told)} |")
    return lines


def compared(runs: dict[str, dict[str, float]], less: str, more: str, claim: str) -> list[str]:
    """Whether one case stayed below another at every point that both have, two or more."""
    both = [point for point in runs.get(less, {}) if point in runs.get(more, {})]
    if len(both) < 2:
        return []
    gaps = [runs[more][point] - runs[less][point] for point in both]
    words = ", ".join(f"{gap:+.4f} at {point}" for gap, point in zip(gaps, both, strict=True))
    held = sum(gap > 0 for gap in gaps)
    verdict = "as in the paper" if held == len(gaps) else "unlike the paper"
    if 0 < held < len(gaps):
        verdict = "as in the paper at some points only"
    return [f"- {claim}: {more} less {less} is {words}: **{verdict}**."]


def findings(group: str, runs: dict[str, dict[str, float]]) -> list[str]:
    """The paper's claims of a group against these losses, in words."""
    if group == A:
        return compared(runs, "interpolated", "as they were", "Interpolation helps")
    if group == C:
        return compared(runs, "kept weights", "fresh", "Keeping the weights helps")
    said = []
    for place in ("shallow", "middle"):
        said += compared(runs, "deep", place, f"Deep layers bear it better than {place} ones")
    for kind in ("average", "discard"):
        said += compared(runs, "deep", f"deep, {kind}", f"A convolution is better than {kind}")
    said += compared(runs, "deep", "deep, random start", "Starting as an average helps")
    return said + compared(runs, "none", "deep", "Compressing costs something")


def write(results: Results, out: Path, settings: str) -> None:
    """table.md, curves.png and results.json: everything there is so far."""
    from matplotlib.figure import Figure

    lines = [settings, ""]
    figure = Figure(figsize=(4.5 * len(results), 4), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (group, runs) in zip(panels, results.items(), strict=True):
        lines += [f"### {group}", "", ABOUT[group], "", *table(runs), "", *findings(group, runs)]
        lines.append("")
        for name, losses in runs.items():
            axes.plot([int(point) + 1 for point in losses], list(losses.values()), "o-", label=name)
        axes.set(title=group, xscale="log", xlabel="step + 1", ylabel="held-out loss")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    (out / "table.md").write_text("\n".join(lines))
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    figure.savefig(out / "curves.png", dpi=80)


def draw_sheets(found: list[Case], out: Path) -> Path | None:
    """sheets.png: what the cases drew, side by side, a row a point; none where nothing was."""
    from matplotlib.figure import Figure

    drawn = [case for case in found if (out / case.folder / "samples" / SHEET).is_file()]
    if not drawn:
        return None
    figure = Figure(figsize=(3.6 * len(drawn), 5), layout="constrained")
    for axes, case in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        folder = out / case.folder / "samples"
        steps = [int(path.stem) for path in sorted(folder.glob("[0-9]*.png"))]
        with Image.open(folder / SHEET) as sheet:
            axes.imshow(sheet)
            row = sheet.height / len(steps)
        axes.set_yticks([row * (i + 0.5) for i in range(len(steps))], steps)
        axes.set_xticks([])
        axes.set_title(f"{case.group}\n{case.name}", fontsize=9)
    figure.savefig(out / "sheets.png", dpi=110)
    return out / "sheets.png"


def fill(page: Path, out: Path) -> None:
    """Put tables and plots of `out` into a page between its two marks, pictures into images/."""
    text = page.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = [(out / "table.md").read_text().replace("### ", "## ").rstrip(), ""]
    for name in ("curves", "sheets"):
        if (picture := out / f"{name}.png").is_file():
            kept = page.parent / "images" / f"weak-to-strong-{name}.png"
            kept.write_bytes(picture.read_bytes())
            lines += [f"![{name}](images/{kept.name})", ""]
    page.write_text(f"{before}{BEGIN}\n\n{chr(10).join(lines)}\n{END}{after}")
