"""The paper's claims about going from weak to strong (PixArt-Σ, section 3.3), in miniature.

    python benchmarks/weak_to_strong.py --model WEAK --data DATA --out weak-to-strong \\
        [--other mini] [--minutes 12] [--page docs/weak-to-strong.md]
    python benchmarks/weak_to_strong.py --quick --out somewhere

WEAK is a small trained model with its encoders (a folder, as `--model` of `generate` takes), DATA
its rows of pictures and captions, such as captions.jsonl of recipes/mini. Some pictures are drawn
by lot and prepared at the model's resolution and at twice that, and with the autoencoder of another
model. What is measured, each line a run with the same batches and noise: (a) the higher resolution
with and without interpolated positions; (b) from the end of (a), where keys and values are
compressed and how; (c) another autoencoder, against a fresh start.

Two runs go side by side, each on half of the cores. Losses are kept as they come; with `--minutes`
the script ends after about so many, and the same command goes on. Writes table.md, curves.png,
sheets.png and results.json, and with `--page` into that page.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import torch
from torch import Tensor, nn
from weak_cases import Case, Results, cases, draw_sheets, fill, write

from pixsigma.config import TransformerConfig
from pixsigma.data.manifest import read_lines
from pixsigma.data.shards import open_features
from pixsigma.datatools.prepare import Settings, Work, prepare
from pixsigma.diffusion.samplers import DEFAULT_SAMPLER, get_sampler
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.checkpoint import checkpoints
from pixsigma.training.recipe import Recipe
from pixsigma.training.trainer import Trainer
from pixsigma.training.validation import Validation, held_out_loss
from pixsigma.weights.build import load_components, resolve
from pixsigma.weights.files import write_json, write_lines
from pixsigma.weights.folder import (
    latent_pixels,
    read_transformer,
    save_folder,
    save_transformer,
)

POINTS = (0, 50, 100, 500, 1000)
SHORT = 100
"""The last point of the runs with compression, which are seven."""
PROMPTS = ("a red apple", "a snowman", "a yellow lemon", "a frog")
LOSSES = "losses.json"
"""In a case's folder: what was measured of it so far."""


def config_of(model: Path) -> TransformerConfig:
    """What a model's transformer is."""
    return read_transformer(resolve(str(model), ["transformer"])).config


def make_ready(arguments: argparse.Namespace) -> None:
    """Draw pictures by lot and prepare them thrice; what is there already is left."""
    rows = [row for _, row in read_lines(arguments.data)]
    num, held_out = arguments.pictures, arguments.held_out
    if len(rows) < num + held_out:
        raise SystemExit(f"--pictures and --held-out ask for {num + held_out} of {len(rows)} rows")
    random.Random(0).shuffle(rows)
    parts = {"": rows[held_out : held_out + num], "-held-out": rows[:held_out]}
    for ending, part in parts.items():
        path = arguments.out / f"rows{ending}.jsonl"
        told = [row | {"path": str(arguments.data.parent / row["path"])} for row in part]
        write_lines(path, told)
    side = config_of(arguments.model).sample_size
    if not (arguments.swapped_base / "model_index.json").is_file():
        parts_of = load_components(str(arguments.model))
        other = load_components(arguments.other, parts=["autoencoder"]).autoencoder
        assert parts_of.transformer is not None, "all parts are loaded"
        save_folder(
            arguments.swapped_base,
            transformer=parts_of.transformer,
            text_encoder=parts_of.text_encoder,
            autoencoder=other,
            sampler=parts_of.sampler,
            schedule=parts_of.schedule,
            variant=parts_of.variant,
        )
    work = Work(device=torch.device("cpu"), workers=0, batch_size=16)
    for name in ("swapped", "high"):
        base = arguments.swapped_base if name == "swapped" else arguments.model
        for ending in parts:
            out = Path(f"{getattr(arguments, name)}{ending}")
            if (out / "index.json").is_file():
                continue
            settings = Settings(
                data=str(arguments.out / f"rows{ending}.jsonl"),
                model=str(base),
                resolution=latent_pixels(resolve(str(base))) * side * (2 if name == "high" else 1),
                square=True,
                max_enlarge=8.0,
            )
            start = time.monotonic()
            for _ in prepare(settings, out, work):
                pass
            print(f"{out.name}: prepared in {time.monotonic() - start:.0f} s", flush=True)


def recipe_of(case: Case, arguments: argparse.Namespace) -> Recipe:
    """A short run with a constant rate, so that points of one run are comparable."""
    base = arguments.swapped_base if case.features == "swapped" else arguments.model
    draws = case.draws and not arguments.quick
    begun = arguments.model if case.start is None else arguments.out / case.start
    fields = {
        "features": getattr(arguments, case.features),
        "model": {"init_from": str(begun), **case.model},
        "loss": {"prediction_type": arguments.prediction_type, "timesteps": "stratified"},
        "optimizer": {"learning_rate": arguments.rate, "schedule": "constant", "warmup_steps": 20},
        "run": {
            "steps": case.points[-1],
            "batch_size": arguments.batch,
            "ema_decay": 0.0,
            "mixed_precision": arguments.precision,
            "device": "cpu",
            "checkpoint_every": 10**6,
        },
        "validation": {
            "prompts": PROMPTS if draws else (),
            "guidance_scale": 3.0,
            "num_inference_steps": 14,
        },
    }
    return Recipe.model_validate(fields | ({"base": str(base)} if draws else {}))


def measure(case: Case, arguments: argparse.Namespace, end: float) -> bool:
    """Train a case until all its points are told or time is over; whether they are."""
    out = arguments.out / case.folder
    losses = losses_of(case, arguments.out)
    if str(case.points[-1]) in losses:
        return True
    recipe = recipe_of(case, arguments)
    trainer = Trainer(recipe, out)
    with torch.no_grad():
        case.prepare(trainer.model)
    if checkpoints(out):
        trainer.resume()
    held_out = open_features(Path(f"{getattr(arguments, case.features)}-held-out"))
    validation = Validation(recipe, out, trainer.schedule, get_sampler(DEFAULT_SAMPLER))
    while True:
        if trainer.step in case.points and str(trainer.step) not in losses:
            with trainer.accelerator.autocast():
                device = trainer.accelerator.device
                loss = held_out_loss(trainer.model, trainer.schedule, held_out, device)
            validation.look(trainer.model, trainer.step)
            losses[str(trainer.step)] = loss
            write_json(out / LOSSES, losses)
            print(f"{case.group:16} {case.name:26} {trainer.step:5} {loss:.4f}", flush=True)
        done = trainer.step == case.points[-1]
        if done or time.time() > end:
            trainer.save()
            break
        trainer.training_step()
        trainer.step += 1
    if done:  # its model is all that others need
        shutil.rmtree(out / "checkpoints")
    return done


def losses_of(case: Case, out: Path) -> dict[str, float]:
    """What is known of a case."""
    file = out / case.folder / LOSSES
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def measure_apart(number: int, arguments: argparse.Namespace, end: float) -> bool:
    """One of the cases, in a process that has its share of the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // arguments.lanes))
    return measure(all_cases(arguments)[number], arguments, end)


def all_cases(arguments: argparse.Namespace) -> list[Case]:
    """The runs for the model that was named."""
    return cases(config_of(arguments.model), tuple(arguments.points), arguments.short)


def measure_all(arguments: argparse.Namespace, end: float) -> bool:
    """Every case that is not done, those that others begin with first; whether all are."""
    found, done = all_cases(arguments), True
    context = multiprocessing.get_context("spawn")
    for first in (True, False):
        numbers = [i for i, case in enumerate(found) if (case.start is None) == first]
        if arguments.lanes == 1:
            for number in numbers:
                done &= measure(found[number], arguments, end)
                tell(found, arguments)
            continue
        with ProcessPoolExecutor(arguments.lanes, mp_context=context) as lanes:
            waiting = {lanes.submit(measure_apart, i, arguments, end) for i in numbers}
            while waiting:
                finished, waiting = wait(waiting, timeout=30, return_when=FIRST_COMPLETED)
                done &= all(case.result() for case in finished)
                tell(found, arguments)
        if not done:
            break
    return done


def tell(found: list[Case], arguments: argparse.Namespace) -> None:
    """Write everything that is known."""
    results: Results = {}
    for case in sorted(found, key=lambda case: case.group):
        if losses := losses_of(case, arguments.out):
            results.setdefault(case.group, {})[case.name] = losses
    if not results:
        return
    settings = (
        f"Batches of {arguments.batch}, AdamW at {arguments.rate:g}, "
        f"{arguments.pictures:,} pictures, {arguments.held_out} held out, "
        f"mixed precision {arguments.precision}."
    )
    write(results, arguments.out, settings)
    draw_sheets(found, arguments.out)
    if arguments.page is not None:
        fill(arguments.page, arguments.out)


def quick(arguments: argparse.Namespace) -> None:
    """A tiny random model and random features in place of what was named."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder = arguments.out / "quick"
    config = TransformerConfig(
        num_layers=4,
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
    arguments.model, arguments.lanes = folder / "model", 1
    arguments.points, arguments.short, arguments.batch = (0, 2, 4), 2, 4
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
    parser.add_argument("--model", type=Path, help="the weak model with its encoders, a folder")
    parser.add_argument("--data", type=Path, help="rows of pictures and captions, JSON lines")
    parser.add_argument("--other", default="mini", help="the model whose autoencoder is swapped in")
    parser.add_argument("--pictures", type=int, default=1200, help="that are trained on")
    parser.add_argument("--held-out", type=int, default=64, help="pictures that are measured on")
    parser.add_argument("--points", type=int, nargs="+", default=POINTS)
    parser.add_argument("--short", type=int, default=SHORT, help="the last point of compression")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--prediction-type", default="v_prediction", help="as it was trained")
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--page", type=Path, help="a page that gets tables and pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny and random: does it run?")
    return parser


def main() -> None:
    """Prepare, train every case that is not done, write what came out."""
    parser = flags()
    arguments = parser.parse_args()
    begun = time.time()
    arguments.out = arguments.out.absolute()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.high, arguments.swapped = arguments.out / "high", arguments.out / "swapped"
    arguments.swapped_base = arguments.out / "swapped-base"
    if arguments.quick:
        quick(arguments)
    elif arguments.model is None or arguments.data is None:
        parser.error("--model and --data are needed")
    else:
        arguments.data = arguments.data.absolute()
        make_ready(arguments)
    done = measure_all(arguments, begun + 60 * arguments.minutes)
    print(f"{'done' if done else 'to be gone on with: the same command'}, ", end="")
    print(f"{time.time() - begun:.0f} s")


if __name__ == "__main__":
    main()
