"""The paper's claims about going from weak to strong (PixArt-Σ, section 3.3), in miniature.

    python benchmarks/weak_to_strong.py --low LOW --high HIGH --swapped SWAPPED \\
        --base mini --swapped-base FOLDER --out weak-to-strong [--minutes 5]
    python benchmarks/weak_to_strong.py --quick --out somewhere

LOW, HIGH and SWAPPED are folders of `pixsigma prepare`: at one resolution, at twice that, and at
the first with another autoencoder; each with `-held-out` beside it. A small model is trained on LOW
first, or taken from `--model`. What is measured, each line a run with the same batches and noise:
(a) the higher resolution with and without interpolated positions; (b) from the end of (a), where
keys and values are compressed and how; (c) another autoencoder, against a fresh start. With
`--minutes` the script ends after about so many; the same command goes on. Writes table.md,
curves.png, results.json and, with `--base`, drawings over time in NAME/samples.
"""

import argparse
import json
import time
from collections.abc import Callable
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
from pixsigma.training.checkpoint import checkpoints
from pixsigma.training.recipe import Recipe
from pixsigma.training.trainer import Trainer
from pixsigma.training.validation import Validation, held_out_loss
from pixsigma.weights.build import resolve
from pixsigma.weights.folder import read_transformer, save_transformer

POINTS = (0, 50, 100, 500, 1000)
PROMPTS = ("a red apple", "a snowman", "a yellow lemon", "a frog")
START = "base"
"""The case that is trained first."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: what it changes in which model, and on which pictures."""

    group: str
    name: str
    features: str
    start: str = START
    """The case whose end it begins with."""
    model: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[PixArtTransformer], None] = lambda model: None
    share: float = 1.0
    """Of the steps: a run may be shorter."""

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
    half = num // 2
    first = (num - half) // 2
    places = {
        "none": None,
        "shallow": range(half),
        "middle": range(first, first + half),
        "deep": range(num - half, num),
    }
    told: dict[str, Any] = {"features": "high", "start": "a-interpolated", "share": 0.5}
    found = [
        Case(group="a: resolution", name="interpolated", features="high", model=higher),
        Case(group="a: resolution", name="as they were", features="high", model=kept),
    ]
    for name, layers in places.items():
        model = {} if layers is None else {"kv_compression": {"layers": list(layers)}}
        found.append(Case(group="b: compression", name=name, model=model, **told))
    kinds: dict[str, Callable[[PixArtTransformer], None]] = {
        "deep, random start": random_start,
        "deep, average": average,
        "deep, discard": discard,
    }
    for name, prepare in kinds.items():
        found.append(Case(group="b: compression", name=name, model=model, prepare=prepare, **told))
    if swapped:
        found += [
            Case(group="c: autoencoder", name="swapped", features="swapped"),
            Case(group="c: autoencoder", name="fresh", features="swapped", prepare=fresh),
        ]
    return found


def recipe_of(case: Case, arguments: argparse.Namespace) -> Recipe:
    """A short run with a constant rate, so that points of one run are comparable."""
    base = arguments.swapped_base if case.features == "swapped" else arguments.base
    draws = base is not None and case.group[0] in "ac"
    if case.start == START:
        begun = arguments.model or arguments.out / START
    else:
        begun = arguments.out / case.start
    return Recipe(
        features=Path(getattr(arguments, case.features)),
        model={"init_from": str(begun), **case.model},
        loss={"prediction_type": arguments.prediction_type, "timesteps": "stratified"},
        optimizer={"learning_rate": arguments.rate, "schedule": "constant", "warmup_steps": 20},
        run={
            "steps": max(points_of(case, arguments)),
            "batch_size": arguments.batch,
            "ema_decay": 0.0,
            "device": "cpu",
            "checkpoint_every": 10**6,
        },
        validation={"prompts": PROMPTS if draws else (), "guidance_scale": 3.0},
        **({"base": str(base)} if draws else {}),
    )


def points_of(case: Case, arguments: argparse.Namespace) -> list[int]:
    """Steps after which a case is looked at."""
    return [p for p in arguments.points if p <= case.share * max(arguments.points)]


def base_recipe(arguments: argparse.Namespace) -> Recipe:
    """The weak model: fresh, at the low resolution."""
    data = open_features(Path(arguments.low))
    side = data.latent_shapes[0][1]
    return Recipe(
        features=Path(arguments.low),
        model={
            "num_layers": arguments.layers,
            "num_attention_heads": arguments.width // 64,
            "attention_head_dim": 64,
            "caption_channels": data.text_width,
            "sample_size": side,
            "interpolation_scale": side / 64,
        },
        loss={"prediction_type": arguments.prediction_type, "timesteps": "stratified"},
        optimizer={"name": "muon", "learning_rate": 1e-3, "warmup_steps": 50},
        run={"steps": arguments.base_steps, "batch_size": 64, "ema_decay": 0.99, "device": "cpu"},
    )


def train_base(arguments: argparse.Namespace, stop: Callable[[], bool]) -> bool:
    """Train the weak model, or go on with it; whether it is done."""
    trainer = Trainer(base_recipe(arguments), arguments.out / START)
    if checkpoints(trainer.out):
        trainer.resume()
    for progress in trainer.run(stop):
        print(f"base {progress.step:5} {progress.loss:.4f}", flush=True)
    return trainer.step == arguments.base_steps


def curve(
    case: Case, arguments: argparse.Namespace, losses: dict[str, float], stop: Callable[[], bool]
) -> bool:
    """Held-out loss of the weights themselves at every point, into `losses`; whether all are."""
    recipe, points = recipe_of(case, arguments), points_of(case, arguments)
    trainer = Trainer(recipe, arguments.out / case.folder)
    with torch.no_grad():
        case.prepare(trainer.model)
    if checkpoints(trainer.out):
        trainer.resume()
    held_out = open_features(Path(f"{getattr(arguments, case.features)}-held-out"))
    validation = Validation(recipe, trainer.out, trainer.schedule, get_sampler(DEFAULT_SAMPLER))
    while True:
        if trainer.step in points and str(trainer.step) not in losses:
            device = trainer.accelerator.device
            loss = held_out_loss(trainer.model, trainer.schedule, held_out, device)
            validation.look(trainer.model, trainer.step)
            losses[str(trainer.step)] = loss
            print(f"{case.group:16} {case.name:26} {trainer.step:5} {loss:.4f}", flush=True)
        done = trainer.step == max(points)
        if done or stop():
            trainer.save()
            return done
        trainer.training_step()
        trainer.step += 1


def write(results: dict[str, dict[str, dict[str, float]]], out: Path) -> None:
    """table.md, curves.png and results.json."""
    from matplotlib.figure import Figure

    lines = []
    figure = Figure(figsize=(4.5 * len(results), 4), layout="constrained")
    for axes, (group, runs) in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True
    ):
        points = list(max(runs.values(), key=len))
        lines += [f"### {group}", "", f"| held-out loss after | {' | '.join(points)} |"]
        lines.append("|---|" + "---|" * len(points))
        for name, losses in runs.items():
            told = [f"{losses[point]:.4f}" if point in losses else "" for point in points]
            lines.append(f"| {name} | {' | '.join(told)} |")
            axes.plot([int(point) + 1 for point in losses], list(losses.values()), "o-", label=name)
        lines.append("")
        axes.set(title=group, xscale="log", xlabel="step + 1", ylabel="held-out loss")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    (out / "table.md").write_text("\n".join(lines))
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    figure.savefig(out / "curves.png", dpi=80)


def quick(arguments: argparse.Namespace) -> None:
    """A tiny random model and random features in place of what was named."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder = arguments.out / "quick"
    model = PixArtTransformer(
        TransformerConfig(
            num_layers=4,
            num_attention_heads=1,
            attention_head_dim=16,
            caption_channels=8,
            sample_size=4,
            interpolation_scale=0.0625,
        )
    )
    for weight in model.parameters():  # a fresh model answers 0 whatever is changed in it
        nn.init.normal_(weight, std=0.2)
    save_transformer(model, folder / "model" / "transformer")
    for name, side in (("high", 8), ("swapped", 4)):
        for ending in ("", "-held-out"):
            save_file(random_features(side), folder / f"{name}{ending}")
        setattr(arguments, name, folder / name)
    arguments.model, arguments.base, arguments.swapped_base = folder / "model", None, None
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


def flags() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="the weak model; else one is trained")
    parser.add_argument("--width", type=int, default=128, help="of the one that is trained")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--base", help="whose encoders draw; none draws nothing")
    parser.add_argument("--swapped-base", help="the same of the other autoencoder")
    parser.add_argument("--low", type=Path, help="features at the low resolution")
    parser.add_argument("--high", type=Path, help="features at twice that")
    parser.add_argument("--swapped", type=Path, help="features of another autoencoder")
    parser.add_argument("--points", type=int, nargs="+", default=POINTS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--prediction-type", default="v_prediction", help="as it was trained")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny and random: does it run?")
    return parser


def main() -> None:
    """Train every case that is not done, write what came out."""
    parser = flags()
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.quick:
        quick(arguments)
    elif arguments.high is None or (arguments.low is None and arguments.model is None):
        parser.error("--high, and --low or --model, are needed; --swapped for the third claim")
    end = time.monotonic() + 60 * arguments.minutes

    def stop() -> bool:
        return time.monotonic() > end

    if arguments.model is None and not train_base(arguments, stop):
        return
    weak = arguments.model or arguments.out / START
    config = read_transformer(resolve(str(weak), ("transformer",))).config
    file = arguments.out / "results.json"
    results: dict[str, dict[str, dict[str, float]]] = {}
    if file.is_file():
        results = json.loads(file.read_text())
    for case in cases(config, arguments.swapped is not None):
        losses = results.setdefault(case.group, {}).setdefault(case.name, {})
        if str(max(points_of(case, arguments))) in losses:
            continue
        done = curve(case, arguments, losses, stop)
        write(results, arguments.out)
        if not done:
            print("to be gone on with: the same command")
            return


if __name__ == "__main__":
    main()
