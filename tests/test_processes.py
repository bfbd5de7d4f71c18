"""Several processes over gloo: the curve of one, weights in parts (FSDP2), one end for all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pixsigma.errors import InputError
from pixsigma.training.checkpoint import checkpoints, latest_checkpoint
from pixsigma.training.recipe import read_recipe
from pixsigma.training.run import read_metrics, train
from pixsigma.weights.folder import read_transformer
from processes import in_two
from small import small_features

RECIPE = """
features = "{features}"
[model]
num_layers = 2
num_attention_heads = 2
attention_head_dim = 16
caption_channels = 16
sample_size = 4
interpolation_scale = 0.0625
[model.kv_compression]
layers = [1]
[optimizer]
learning_rate = 2e-3
warmup_steps = 2
[run]
steps = 8
batch_size = 4
checkpoint_every = 4
log_every = 2
ema_decay = 0.5
device = "cpu"
[validation]
every = 4
features = "{features}"
"""
PROCESS = """
import json, os, sys
from pathlib import Path
from pixsigma.training.recipe import read_recipe
from pixsigma.training.run import train
for changes, out, resume, stopper in json.loads(sys.argv[2]):
    asked = iter(range(100))
    def stop():
        return next(asked) == 2 and os.environ["RANK"] == stopper
    list(train(read_recipe(Path(sys.argv[1]), changes), Path(out), resume=resume, stop=stop))
"""
OPTIMIZERS = {"adamw": 2e-3, "came": 1e-3, "muon": 2e-3, "schedulefree": 2e-3}


def rates(name: str) -> dict[str, Any]:
    changes: dict[str, Any] = {"optimizer.name": name, "optimizer.learning_rate": OPTIMIZERS[name]}
    return changes | ({"optimizer.schedule": "constant"} if name == "schedulefree" else {})


def both(recipe: Path, plans: list[tuple[dict[str, Any], Path, bool, str]]) -> None:
    """Runs, one after the other, in the same two processes; each must end well."""
    told = json.dumps([(changes, str(out), resume, who) for changes, out, resume, who in plans])
    in_two(PROCESS, str(recipe), told)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    path = folder / "recipe.toml"
    features = small_features(folder / "features.safetensors", spread=0.01)
    path.write_text(RECIPE.format(features=features))
    return path


@pytest.fixture(scope="module")
def runs(recipe: Path) -> Path:
    """Runs of two processes, by name; those named after an optimiser have weights in parts."""
    folder = recipe.parent
    parts = {"run.shard": True}
    plans = [({}, folder / "whole", False, "nobody")]
    plans += [(parts | rates(name), folder / name, False, "nobody") for name in OPTIMIZERS]
    small = parts | {"run.accumulate": 2, "run.gradient_checkpointing": True}
    plans += [
        (small, folder / "stopped", False, "1"),
        (small, folder / "accumulated", False, "nobody"),
        (parts | {"run.mixed_precision": "bf16"}, folder / "bf16", False, "nobody"),
    ]
    both(recipe, plans)
    (stopped,) = checkpoints(folder / "stopped")
    (folder / "stopped-at").write_text(stopped.stem)
    shutil.copytree(folder / "stopped", folder / "moved")
    both(recipe, [(small, folder / "stopped", True, "nobody")])
    return folder


def curve(run: Path) -> list[float]:
    rows = read_metrics(run / "metrics.jsonl")
    return [row[key] for row in rows for key in ("loss", "held_out_loss") if key in row]


def end(run: Path, kind: str = "model") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(latest_checkpoint(run), weights_only=True)[kind]
    return found


def alone(recipe: Path, out: Path, **changes: Any) -> Path:
    """The run of one process that two should repeat."""
    if not out.exists():
        told = {key.replace("__", "."): value for key, value in changes.items()}
        list(train(read_recipe(recipe, {"run.accumulate": 2} | told), out))
    return out


@pytest.mark.parametrize("name", ["whole", *OPTIMIZERS])
def test_two_processes_make_the_curve_of_one(recipe: Path, runs: Path, name: str) -> None:
    """Sums of floats in another order, nothing else, may differ.

    CAME divides gradients that are rounding alone by their own size: its curves part further,
    with whole weights as with parts.
    """
    kind = "adamw" if name == "whole" else name
    one = alone(recipe, runs / f"one-{kind}", **rates(kind))
    assert len(curve(one)) == 6
    assert curve(runs / name) == pytest.approx(curve(one), rel=2e-2 if name == "came" else 1e-5)
    if name == "came":
        return
    for key, value in end(one).items():
        torch.testing.assert_close(end(runs / name)[key], value, rtol=1e-4, atol=2e-5)


def test_parts_and_wholes_are_kept_alike(runs: Path) -> None:
    """One process can read what several left, and the model draws."""
    for kind in ("model", "ema"):
        parted, whole = end(runs / "adamw", kind), end(runs / "whole", kind)
        assert {k: getattr(v, "shape", v) for k, v in parted.items()} == {
            k: getattr(v, "shape", v) for k, v in whole.items()
        }
    read = read_transformer(runs / "adamw" / "model")
    for key, value in end(runs / "adamw", "ema").items():
        if key != "num_updates":
            assert torch.equal(read.state_dict()[key], value), key


def test_all_stop_after_the_same_step_and_go_on_exactly(recipe: Path, runs: Path) -> None:
    """One process heard Ctrl-C before its third step; the answer comes a step late."""
    assert (runs / "stopped-at").read_text() == "00000003"
    for kind in ("model", "ema"):
        for key, value in end(runs / "accumulated", kind).items():
            again = torch.as_tensor(end(runs / "stopped", kind)[key])
            assert torch.equal(again, torch.as_tensor(value)), key
    one = alone(recipe, runs / "one-4", run__accumulate=4)
    assert curve(runs / "accumulated") == pytest.approx(curve(one), rel=1e-5)


def test_parts_in_half_precision(runs: Path) -> None:
    plain = curve(runs / "adamw")
    assert curve(runs / "bf16") == pytest.approx(plain, rel=3e-2)
    assert curve(runs / "bf16") != plain
    assert {value.dtype for value in end(runs / "bf16").values()} == {torch.float32}


def test_one_process_goes_on_where_two_in_parts_stood(recipe: Path, runs: Path) -> None:
    """With the same steps, since its parts are as many."""
    changes = {"run.accumulate": 4, "run.shard": False}
    list(train(read_recipe(recipe, changes), runs / "moved", resume=True))
    # the first report after going on is of fewer steps
    assert curve(runs / "moved")[2:] == pytest.approx(curve(runs / "accumulated")[2:], rel=1e-5)
    for key, value in end(runs / "accumulated").items():
        torch.testing.assert_close(end(runs / "moved")[key], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run.shard": True}, "there is one"),
        ({"run.shard": True, "run.mixed_precision": "fp16"}, "does not go with fp16"),
        ({"run.shard": True, "optimizer.name": "adafactor"}, "does not go with adafactor"),
    ],
)
def test_what_cannot_be_parted_is_told(
    recipe: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        next(train(read_recipe(recipe, changes), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_other_engines_are_refused(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"run\.shard = true"):
        next(train(read_recipe(recipe), tmp_path / "run"))
