"""The paper's claims about going from weak to strong (PixArt-Σ, section 3.3), in miniature.

    python benchmarks/weak_to_strong.py --model mini --high HIGH --swapped SWAPPED \
        --base mini --out weak-to-strong
    python benchmarks/weak_to_strong.py --quick --out somewhere

HIGH and SWAPPED are folders of `pixsigma prepare`: at twice the model's resolution, and at the
model's with another autoencoder; each with `-held-out` beside it. What is measured:
(a) a higher resolution with and without interpolated positions; (b) where keys and values are
compressed, how, and from which start; (c) another autoencoder, against a fresh start. Every line is
a run of its own, with the same batches, noise and held-out pictures. Writes table.md, curves.png,
results.json and, with `--base`, drawings over time in NAME/samples.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixsigma.config import TransformerConfig
from pixsigma.data.shards import open_features
from pixsigma.diffusion.samplers import DEFAULT_SAMPLER, get_sampler
from pixsigma.models.blocks import SelfAttention
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.recipe import Recipe
from pixsigma.training.trainer import Trainer
from pixsigma.training.validation import Validation, held_out_loss
from pixsigma.weights.build import resolve
from pixsigma.weights.folder import read_transformer, save_transformer

POINTS = (0, 50, 100, 500, 1000)
PROMPTS = ("a red fox", "a yellow lemon", "a blue car", "a snowman")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: what it changes in the model, and on which pictures."""

    group: str
    name: str
    features: str
    model: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[PixArtTransformer], None] = lambda model: None


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
        hold(layer.sr.weight)
        hold(layer.sr.bias)


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


def cases(config: TransformerConfig, swapped: bool) -> list[Case]:
    """All runs of the three claims."""
    side, scale = config.sample_size, config.interpolation_scale
    kept = {"sample_size": 2 * side, "interpolation_scale": scale}
    higher = {"sample_size": 2 * side, "interpolation_scale": 2 * scale}
    num = config.num_layers
    third = max(1, num // 3)
    deep = range(num - third, num)
    places = {
        "shallow": range(third),
        "middle": range((num - third) // 2, (num - third) // 2 + third),
        "deep": deep,
    }
    found = [
        Case(group="a: resolution", name="interpolated", features="high", model=higher),
        Case(group="a: resolution", name="as they were", features="high", model=kept),
        Case(group="b: place", name="none", features="high", model=higher),
    ]
    for name, layers in places.items():
        model = higher | {"kv_compression": {"layers": list(layers)}}
        found.append(Case(group="b: place", name=name, features="high", model=model))
    model = higher | {"kv_compression": {"layers": list(deep)}}
    kinds: dict[str, Callable[[PixArtTransformer], None]] = {
        "convolution from average": lambda model: None,
        "convolution from random": random_start,
        "average": average,
        "discard": discard,
    }
    for name, prepare in kinds.items():
        found.append(
            Case(group="b: kind", name=name, features="high", model=model, prepare=prepare)
        )
    if swapped:
        found += [
            Case(group="c: autoencoder", name="swapped", features="swapped"),
            Case(group="c: autoencoder", name="fresh", features="swapped", prepare=fresh),
        ]
    return found


def recipe_of(case: Case, arguments: argparse.Namespace) -> Recipe:
    """A short run with a constant rate, so that points of one run are comparable."""
    draws = {"base": arguments.base} if arguments.base else {}
    return Recipe(
        features=Path(getattr(arguments, case.features)),
        model={"init_from": str(arguments.model), **case.model},
        loss={"prediction_type": arguments.prediction_type, "timesteps": "stratified"},
        optimizer={"learning_rate": arguments.rate, "schedule": "constant", "warmup_steps": 20},
        run={"steps": max(arguments.points), "batch_size": arguments.batch, "device": "cpu"},
        validation={"prompts": PROMPTS if arguments.base else (), "guidance_scale": 3.0},
        **draws,
    )


def curve(case: Case, arguments: argparse.Namespace) -> list[float]:
    """Held-out loss of the weights themselves at every point."""
    recipe = recipe_of(case, arguments)
    folder = arguments.out / f"{case.group[0]}-{case.name.replace(' ', '-')}"
    trainer = Trainer(recipe, folder)
    with torch.no_grad():
        case.prepare(trainer.model)
    held_out = open_features(Path(f"{getattr(arguments, case.features)}-held-out"))
    validation = Validation(recipe, folder, trainer.schedule, get_sampler(DEFAULT_SAMPLER))
    losses = []
    for trainer.step in range(max(arguments.points) + 1):
        if trainer.step in arguments.points:
            device = trainer.accelerator.device
            losses.append(held_out_loss(trainer.model, trainer.schedule, held_out, device))
            validation.look(trainer.model, trainer.step)
            print(f"{case.group:16} {case.name:26} {trainer.step:5} {losses[-1]:.4f}", flush=True)
        if trainer.step < max(arguments.points):
            trainer.training_step()
    return losses


def write(results: dict[str, dict[str, list[float]]], points: Sequence[int], out: Path) -> None:
    """table.md, curves.png and results.json."""
    from matplotlib.figure import Figure

    lines = []
    figure = Figure(figsize=(4.5 * len(results), 4), layout="constrained")
    for axes, (group, runs) in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True
    ):
        lines += [f"### {group}", "", "| held-out loss after | " + " | ".join(map(str, points))]
        lines[-1] += " |"
        lines.append("|---|" + "---|" * len(points))
        for name, losses in runs.items():
            lines.append(f"| {name} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |")
            axes.plot([point + 1 for point in points], losses, "o-", label=name)
        lines.append("")
        axes.set(title=group, xscale="log", xlabel="step + 1", ylabel="held-out loss")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text("\n".join(lines))
    (out / "results.json").write_text(json.dumps({"points": points, "runs": results}, indent=2))
    figure.savefig(out / "curves.png", dpi=110)


def quick(arguments: argparse.Namespace) -> None:
    """A tiny random model and random features in place of what was named."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder = arguments.out / "quick"
    config = TransformerConfig(
        num_layers=3,
        num_attention_heads=1,
        attention_head_dim=16,
        caption_channels=8,
        sample_size=4,
        interpolation_scale=0.0625,
    )
    model = PixArtTransformer(config)
    for weight in model.parameters():  # a fresh model answers 0 whatever is changed in it
        nn.init.normal_(weight, std=0.2)
    save_transformer(model, folder / "model" / "transformer")
    for name, side in (("high", 8), ("swapped", 4)):
        for ending in ("", "-held-out"):
            save_file(random_features(side), folder / f"{name}{ending}")
        setattr(arguments, name, folder / name)
    arguments.model, arguments.base = folder / "model", None
    arguments.points, arguments.batch = (0, 2, 4), 4
    arguments.prediction_type = "epsilon"


def random_features(side: int) -> dict[str, Tensor]:
    """Eight pictures and captions of noise, as one file of features."""
    return {
        "mean": torch.randn(8, 4, side, side),
        "std": torch.zeros(8, 4, side, side),
        "text": torch.randn(8, 5, 8),
        "text_mask": torch.ones(8, 5, dtype=torch.bool),
        "captions": torch.arange(8)[:, None],
        "null_text": torch.zeros(1, 5, 8),
        "null_mask": torch.ones(1, 5, dtype=torch.bool),
    }


def main() -> None:
    """Train every case, write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("mini"))
    parser.add_argument("--base", help="whose encoders draw; none draws nothing")
    parser.add_argument("--high", type=Path, help="features at twice that")
    parser.add_argument("--swapped", type=Path, help="features of another autoencoder")
    parser.add_argument("--points", type=int, nargs="+", default=POINTS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--prediction-type", default="v_prediction", help="as it was trained")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny and random: does it run?")
    arguments = parser.parse_args()
    if arguments.quick:
        quick(arguments)
    elif arguments.high is None:
        parser.error("--high is needed, and --swapped for the third claim")
    config = read_transformer(resolve(arguments.model, ("transformer",))).config
    results: dict[str, dict[str, list[float]]] = {}
    for case in cases(config, arguments.swapped is not None):
        results.setdefault(case.group, {})[case.name] = curve(case, arguments)
        write(results, arguments.points, arguments.out)


if __name__ == "__main__":
    main()
