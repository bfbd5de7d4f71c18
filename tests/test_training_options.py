"""What a recipe may choose: masks, averages, optimisers, rates, precision, trackers."""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from pixsigma.data.features import Batch
from pixsigma.data.sources import folder_rows
from pixsigma.data.transforms import mask_of
from pixsigma.datatools.encode import Shard, masks_of
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError, MismatchError, MissingExtraError
from pixsigma.interfaces import TextFeatures
from pixsigma.models.blocks import SelfAttention
from pixsigma.training.checkpoint import latest_checkpoint
from pixsigma.training.ema import PowerEma, gamma_of
from pixsigma.training.optim import optimizers
from pixsigma.training.recipe import Recipe, read_recipe
from pixsigma.training.run import read_metrics, train
from pixsigma.training.schedule_free import ScheduleFreeAdamW
from pixsigma.training.sections import OptimizerSection
from pixsigma.training.step import loss_at
from pixsigma.training.trainer import Trainer
from small import small_features, small_transformer

RECIPE = """
features = "{folder}/features.safetensors"
[model]
num_layers = 1
num_attention_heads = 1
attention_head_dim = 16
caption_channels = 16
sample_size = 4
interpolation_scale = 0.0625
[optimizer]
learning_rate = 1e-3
warmup_steps = 0
[run]
steps = 4
batch_size = 4
log_every = 2
device = "cpu"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_features(tmp_path / "features.safetensors", several=False)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(folder=tmp_path))
    return tmp_path


def recipe(folder: Path, **changes: Any) -> Recipe:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return read_recipe(folder / "recipe.toml", given)


def test_what_a_mask_hides_costs_nothing() -> None:
    model, schedule = small_transformer(), NoiseSchedule()
    x0, eps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t, mask = torch.tensor([500, 20]), torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    text = TextFeatures(torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.bool))

    def mse(batch: Batch, outside: float | None) -> torch.Tensor:
        def network(*inputs: Any) -> torch.Tensor:
            return model(*inputs)[:, :4]  # without the bound, which no mask touches

        with torch.no_grad():
            return loss_at(network, schedule, batch, t, eps, outside_mask=outside)

    masked = Batch(x0, text, mask)
    whole = mse(masked, None)
    left, right = mse(masked, 0.0), mse(Batch(x0, text, 1 - mask), 0.0)
    torch.testing.assert_close(left + right, 2 * whole)
    torch.testing.assert_close(mse(masked, 1.0), whole)
    torch.testing.assert_close(mse(masked, 0.25), (left + 0.25 * right) / 1.25)


def test_masks_are_cut_as_their_pictures() -> None:
    pixels = np.zeros((64, 128), dtype=np.uint8)
    pixels[:, 64:] = 255
    mask = mask_of(Image.fromarray(pixels).convert("RGB"), 64, 64, 8)
    assert mask.shape == (1, 8, 8)
    assert (mask[..., :3] == 0).all() and (mask[..., 5:] == 1).all()


def test_masks_are_read_with_their_rows(folder: Path) -> None:
    path = folder / "features.safetensors"
    with pytest.raises(MismatchError, match="has none"):
        Trainer(recipe(folder, loss__outside_mask=0.0), folder)
    masks = torch.rand(8, 1, 4, 4)
    save_file({**load_file(path), "picture_mask": masks}, path)
    trainer = Trainer(recipe(folder, loss__outside_mask=0.1), folder)
    rows = torch.tensor([5, 2])
    batch = trainer.data.batch(rows, 0.0, torch.Generator())
    assert batch.mask is not None and torch.equal(batch.mask, masks[rows])
    assert trainer.training_step().isfinite()


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_a_power_average_is_as_wide_as_asked(std: float) -> None:
    """The weights of the steps, found by averaging the steps' own numbers."""
    num, model = 2000, nn.Linear(1, 1, bias=False)
    ema = PowerEma(model, std)
    weights = torch.zeros(num)
    for i in range(num):
        decay = ema.decay_now()
        weights *= decay
        weights[i] = 1 - decay
        ema.num_updates += 1
    place = (torch.arange(num) + 1) / num
    mean = (weights * place).sum()
    deviation = float((weights * (place - mean) ** 2).sum().sqrt())
    assert float(weights.sum()) == pytest.approx(1, abs=1e-4)
    assert deviation == pytest.approx(std, rel=0.02)
    assert gamma_of(std) > 0


def test_a_power_average_is_kept_and_goes_on(folder: Path) -> None:
    list(train(recipe(folder, run__ema_std=0.1), folder / "run"))
    trainer = Trainer(recipe(folder, run__ema_std=0.1), folder / "run")
    assert isinstance(trainer.ema, PowerEma)
    trainer.resume()
    assert trainer.ema.num_updates == 4


def test_schedule_free_keeps_the_average_that_it_promises() -> None:
    """Defazio et al. 2024, algorithm 1 with Adam's scale, written out for one number."""
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = ScheduleFreeAdamW([p], lr=0.1, betas=(0.9, 0.5))
    y = z = x = 1.0
    v, total = 0.0, 0.0
    for step, rate in enumerate([0.05, 0.1, 0.1], start=1):
        optimizer.param_groups[0]["lr"] = rate
        g = y**2 + step
        p.grad = torch.tensor([g])
        optimizer.step()
        v = 0.5 * v + 0.5 * g * g
        z -= rate * g / ((v / (1 - 0.5**step)) ** 0.5 + 1e-8)
        total += rate**2
        x += rate**2 / total * (z - x)
        y = 0.1 * z + 0.9 * x
        assert float(p.detach()) == pytest.approx(y, rel=1e-5)
        assert float(optimizer.average(p)) == pytest.approx(x, rel=1e-4)


def test_a_schedule_free_run_keeps_its_average_and_ends_the_same(folder: Path) -> None:
    changes = {"optimizer__name": "schedulefree", "optimizer__schedule": "constant"}
    list(train(recipe(folder, **changes), folder / "whole"))
    calls = iter([False, True])
    list(train(recipe(folder, **changes), folder / "cut", stop=lambda: next(calls)))
    list(train(recipe(folder, **changes), folder / "cut", resume=True))
    ends = [
        torch.load(latest_checkpoint(folder / name), weights_only=True) for name in ("whole", "cut")
    ]
    for name, value in ends[0]["ema"].items():
        same = value == ends[1]["ema"][name]
        assert bool(torch.as_tensor(same).all()), name
    moved = [n for n, v in ends[0]["model"].items() if not torch.equal(v, ends[0]["ema"][n])]
    assert moved  # the weights that train are not those that are kept
    with pytest.raises(InputError, match='say schedule = "constant"'):
        recipe(folder, optimizer__name="schedulefree")


def test_8_bit_moments_need_a_gpu(folder: Path) -> None:
    section = OptimizerSection(name="adamw8bit", learning_rate=1e-3)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="needs a CUDA GPU"):
        optimizers(small_transformer(), section)


def test_rates_are_scaled_only_when_asked_and_it_is_said(folder: Path) -> None:
    assert recipe(folder).remarks == []
    for how, factor in (("sqrt", 0.125), ("linear", 1 / 64)):
        plan = recipe(folder, optimizer__scale_rate=how)
        (said,) = plan.remarks
        assert f"0.001 becomes {0.001 * factor:g}" in said
        trainer = Trainer(plan, folder)
        assert trainer.peaks[0][0] == pytest.approx(0.001 * factor)


def test_attention_can_stay_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(16, 2, False, 1), 4 * torch.randn(2, 16, 16)
    with torch.no_grad():
        exact = attention(x, (4, 4))
        with torch.autocast("cpu", torch.bfloat16):
            half = attention(x, (4, 4))
            attention.in_float32 = True
            whole = attention(x, (4, 4))
    assert whole.dtype == half.dtype == torch.bfloat16
    assert (whole - exact).norm() <= (half - exact).norm()
    assert not torch.equal(whole, half)


def test_tensorboard_is_the_tracker_where_it_is_installed_and_others_are_named_if_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("tensorboard"):
        (told,) = Trainer(recipe(folder), folder).accelerator.log_with
        assert told.value == "tensorboard"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert Trainer(recipe(folder), folder).accelerator.log_with == []
    assert Trainer(recipe(folder, run__trackers=[]), folder).accelerator.log_with == []
    with pytest.raises(MissingExtraError, match="names wandb: pip install wandb"):
        Trainer(recipe(folder, run__trackers=["wandb"]), folder)


def test_tensorboard_is_told_every_report(folder: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = folder / "run"
    reports = list(train(recipe(folder, run__steps=3), out))
    (events,) = (out / "pixsigma").glob("events.out.tfevents.*")
    log = reader.EventAccumulator(str(events.parent))
    log.Reload()
    told = {scalar.step: scalar.value for scalar in log.Scalars("loss")}
    assert told == pytest.approx({report.step: report.loss for report in reports})
    assert {"learning_rate", "samples_per_second"} <= set(log.Tags()["scalars"])


TRACKED = """
import sys
from pathlib import Path
from pixsigma.training.recipe import read_recipe
from pixsigma.training.run import train
plan = read_recipe(Path(sys.argv[1]), {"run.trackers": [sys.argv[3]], "run.steps": 3})
list(train(plan, Path(sys.argv[2])))
"""


def tracked(folder: Path, name: str, **place: str) -> list[float]:
    """Losses that a run tells a tracker, in a process of its own: trackers read the environment."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    command = [sys.executable, "-c", TRACKED, str(folder / "recipe.toml"), str(folder / "run")]
    subprocess.run([*command, name], check=True, timeout=200, env=os.environ | place, cwd=folder)
    return [row["loss"] for row in read_metrics(folder / "run" / "metrics.jsonl")]


def test_trackio_is_told_every_report(folder: Path) -> None:
    place = folder / "trackio"
    losses = tracked(folder, "trackio", TRACKIO_DIR=str(place), HF_HUB_OFFLINE="1")
    (kept,) = place.glob("pixsigma*.db")
    with sqlite3.connect(kept) as database:
        rows = [json.loads(row[0]) for row in database.execute("select metrics from metrics")]
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(losses)


def test_wandb_is_told_every_report(folder: Path) -> None:
    """Offline it keeps a log inside the run, whose numbers stand there as words."""
    losses = tracked(folder, "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    (log,) = (folder / "run" / "wandb").glob("offline-run-*/*.wandb")
    told = log.read_bytes()
    assert len(losses) == 2
    assert all(repr(loss).encode() in told for loss in losses)
    assert not (folder / "wandb").exists()


def test_a_mask_beside_a_picture_goes_into_its_shard(tmp_path: Path) -> None:
    half = np.zeros((32, 32), dtype=np.uint8)
    half[:16] = 255
    for name in ("a", "b"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("red")
    Image.fromarray(half).save(tmp_path / "a.mask.png")
    rows = tuple(folder_rows(tmp_path))
    assert [Path(row.path).name for row in rows] == ["a.png", "b.png"]
    shard = Shard(name="s", height=32, width=32, rows=rows, masked=True)
    masks = masks_of(shard, 8)
    assert masks[:, 0, :, 0].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    Path(rows[0].mask).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.mask\.png cannot be read"):
        masks_of(shard, 8)
