"""`pixsigma train`: what a run leaves behind, how it stops, goes on and refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pictures import small_encoders_folder
from pixsigma import PixArtSigmaPipeline
from pixsigma.cli import app
from pixsigma.errors import (
    InputError,
    MismatchError,
    MissingWeightsError,
    NotFiniteError,
    OutputError,
)
from pixsigma.training import curves
from pixsigma.training.chain import is_chain, read_chain
from pixsigma.training.checkpoint import checkpoints, latest_checkpoint
from pixsigma.training.optim import Came, optimizers, rate_at
from pixsigma.training.recipe import parse_override, read_recipe
from pixsigma.training.run import read_metrics, train
from pixsigma.training.sections import KVSection, OptimizerSection
from pixsigma.training.step import draw_noise, draw_timesteps
from pixsigma.training.trainer import Trainer
from pixsigma.weights.files import write_json
from pixsigma.weights.folder import read_text_encoder, save_transformer
from small import small_features, small_transformer

RECIPES = Path(__file__).parents[1] / "recipes"
RECIPE = """
features = "{features}"
[model]
num_layers = 2
num_attention_heads = 2
attention_head_dim = 16
caption_channels = {width}
sample_size = 4
interpolation_scale = 0.0625
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
num_inference_steps = 2
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_encoders_folder(tmp_path_factory.mktemp("base"))
    save_transformer(small_transformer(), folder / "transformer")
    told = {"_class_name": "PixArtSigmaPipeline", "_guidance_scale": 3.0}
    write_json(folder / "model_index.json", told)
    return folder


@pytest.fixture(scope="module")
def width(base: Path) -> int:
    return int(read_text_encoder(base).encoder.config.d_model)


@pytest.fixture
def recipe(tmp_path: Path, width: int) -> Path:
    small_features(tmp_path / "features.safetensors", width, spread=0.01)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(features=tmp_path / "features.safetensors", width=width))
    return path


def run_cli(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_a_run_leaves_a_model_that_draws_and_what_it_went_through(
    recipe: Path, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    wishes = {"base": str(base), "validation.prompts": ["a cat", "a dog"]}
    wishes["validation.features"] = str(tmp_path / "features.safetensors")
    list(train(read_recipe(recipe, wishes), out))
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    looked = [row["step"] for row in rows if "held_out_loss" in row]
    assert looked == [4, 8]
    samples = out / "samples"
    with (
        Image.open(samples / "over-time.png") as sheet,
        Image.open(samples / "00000008.png") as one,
    ):
        assert (one.width, sheet.height) == (2 * one.height, 2 * one.height)
    with Image.open(out / "curves.png") as curves:
        curves.verify()
    pipe = PixArtSigmaPipeline.from_pretrained(out)
    assert pipe.default_guidance == 3.0
    trained = torch.load(latest_checkpoint(out), weights_only=True)["ema"]
    for name, value in pipe.transformer.state_dict().items():
        assert torch.equal(value, trained[name]), name
    *_, last = pipe.stream("a cat", num_inference_steps=2)
    assert last.stage == "done"


def test_stopping_writes_a_checkpoint_and_going_on_ends_the_same(
    recipe: Path, tmp_path: Path
) -> None:
    plan = read_recipe(recipe)
    list(train(plan, tmp_path / "whole"))
    calls = iter([False] * 3 + [True])
    list(train(plan, tmp_path / "stopped", stop=lambda: next(calls)))
    assert [path.stem for path in checkpoints(tmp_path / "stopped")] == ["00000003"]
    with pytest.raises(InputError, match="holds a run already"):
        next(train(plan, tmp_path / "stopped"))
    list(train(plan, tmp_path / "stopped", resume=True))
    ends = [
        torch.load(latest_checkpoint(tmp_path / name), weights_only=True)
        for name in ("whole", "stopped")
    ]
    for name, value in ends[0]["model"].items():
        assert torch.equal(ends[1]["model"][name], value), name


def test_metrics_tell_each_step_once_after_a_kill(recipe: Path, tmp_path: Path) -> None:
    plan, out = read_recipe(recipe), tmp_path / "run"
    killed = train(plan, out)
    next(killed), next(killed), next(killed)  # steps 2, 4 and 6; the checkpoint is of step 4
    kept = latest_checkpoint(out).read_bytes()
    killed.close()
    for path in checkpoints(out):
        path.unlink()
    (out / "checkpoints" / "00000004.pt").write_bytes(kept)
    with (out / "metrics.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    list(train(plan, out, resume=True))
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == [2, 4, 6, 8]


def test_a_resumed_run_may_change_its_rate_but_not_its_model(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    list(train(read_recipe(recipe, {"run.steps": 2}), out))
    with pytest.raises(InputError, match=r"run.seed \(0 before, 1 now\)"):
        next(train(read_recipe(recipe, {"run.seed": 1}), out, resume=True))
    slower = read_recipe(recipe, {"optimizer.learning_rate": 1e-6, "optimizer.cooldown_share": 0})
    reports = list(train(slower, out, resume=True))
    assert [report.learning_rate for report in reports] == [1e-6] * 3
    with pytest.raises(MissingWeightsError, match="without --resume"):
        next(train(slower, tmp_path / "empty", resume=True))


def test_the_last_checkpoints_are_kept(recipe: Path, tmp_path: Path) -> None:
    plan = read_recipe(recipe, {"run.checkpoint_every": 2, "run.keep_checkpoints": 3})
    list(train(plan, tmp_path / "run"))
    kept = [int(path.stem) for path in checkpoints(tmp_path / "run")]
    assert kept == [4, 6, 8]


def test_a_broken_weight_never_reaches_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    trainer = Trainer(read_recipe(recipe), tmp_path)
    with torch.no_grad():
        trainer.model.final_layer.linear.bias.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="weight is not a finite number"):
        trainer.save()
    assert not checkpoints(tmp_path)


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more can be written after the first checkpoint, the curves neither."""
    run, full = train(read_recipe(recipe), tmp_path / "run"), []
    save, draw = torch.save, curves.atomic_write

    def save_if_room(state: Any, path: Path) -> None:
        save(state, path)
        if full:
            raise RuntimeError("PytorchStreamWriter failed writing file")

    def write_if_room(path: Path) -> Any:
        if full:
            raise OutputError("cannot write the curves")
        return draw(path)

    monkeypatch.setattr(torch, "save", save_if_room)
    monkeypatch.setattr(curves, "atomic_write", write_if_room)
    next(run), next(run), next(run)
    full.append(True)
    with pytest.raises(OutputError, match=r"00000008\.pt could not be written"):
        list(run)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000004.pt"]
    assert torch.load(latest_checkpoint(tmp_path / "run"), weights_only=True)["step"] == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("run.stpes=3", "is steps meant"),
        ("optimiser.name=3", "optimiser is no key; is optimizer meant"),
        ("run.accumulate=3", "multiple of accumulate"),
        ("run.batch_size=9", "lower batch_size"),
        ("model.num_layers=0.5", "model.num_layers"),
        ("model.caption_channels=7", "width"),
        ("model.sample_size=5", "multiple of patch_size"),
        ('validation.prompts=["a"]', "need base"),
        ("nonsense", "section.key=value"),
    ],
)
def test_bad_recipes_end_before_the_first_step(
    recipe: Path, tmp_path: Path, change: str, said: str
) -> None:
    result = run_cli(recipe, "--out", tmp_path / "run", "--set", change)
    assert result.exit_code in (2, 3)
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_the_command_tells_where_things_are(recipe: Path, tmp_path: Path) -> None:
    result = run_cli(recipe, "--out", tmp_path / "run", "--json")
    assert [json.loads(line)["step"] for line in result.stdout.splitlines()] == [2, 4, 6, 8]
    result = run_cli(recipe, "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 0
    assert "curves.png" in result.stdout


def test_a_model_can_begin_with_another(recipe: Path, tmp_path: Path) -> None:
    list(train(read_recipe(recipe, {"run.steps": 1}), tmp_path / "weak"))
    path = tmp_path / "short.toml"
    told = recipe.read_text().splitlines()
    first, last = told.index("[model]"), told.index("[optimizer]")
    section = ["[model]", f'init_from = "{tmp_path / "weak"}"', "sample_size = 8"]
    path.write_text("\n".join([*told[:first], *section, *told[last:]]))
    strong = Trainer(read_recipe(path), tmp_path / "strong")
    assert (strong.model.config.num_layers, strong.model.config.sample_size) == (2, 8)


def test_recomputing_changes_no_gradient(recipe: Path, tmp_path: Path) -> None:
    grads = []
    for recompute in (False, True):
        plan = read_recipe(recipe, {"run.gradient_checkpointing": recompute})
        trainer = Trainer(plan, tmp_path / str(recompute))
        torch.nn.init.normal_(trainer.model.final_layer.linear.weight)
        torch.manual_seed(0)
        trainer.backward(trainer.portions(0)[0])
        grads.append([p.grad for p in trainer.model.parameters()])
    for plain, again in zip(*grads, strict=True):
        assert plain is not None and again is not None
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon", "came", "adafactor"])
def test_every_optimizer_lowers_the_loss_and_takes_each_weight_once(
    recipe: Path, tmp_path: Path, name: str
) -> None:
    rates = {"adamw": 2e-3, "muon": 2e-3, "came": 2e-3, "adafactor": 3e-2}
    wishes = {"optimizer.name": name, "optimizer.learning_rate": rates[name], "run.steps": 120}
    plan = read_recipe(recipe, wishes | {"run.caption_dropout": 0.0})
    trainer = Trainer(plan, tmp_path / name)
    taken = [p for o in optimizers(trainer.model, plan.optimizer) for p in o.param_groups]
    num = sum(len(group["params"]) for group in taken)
    assert num == len(list(trainer.model.parameters()))
    losses = [report.loss for report in trainer.run()]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_came_is_the_published_update() -> None:
    """Luo et al. 2023, algorithm 2, written out for two steps of one matrix."""
    torch.manual_seed(0)
    weight, grads = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 3, 4)
    p = torch.nn.Parameter(weight.float())
    optimizer = Came([p], lr=0.1)
    r = c = ur = uc = m = 0.0  # type: ignore[assignment]
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
        square = g.double() ** 2 + 1e-30
        r, c = 0.999 * r + 0.001 * square.mean(1), 0.999 * c + 0.001 * square.mean(0)
        u = g.double() / (torch.outer(r, c) / r.mean()).sqrt()
        u = u / max(1.0, float(u.square().mean().sqrt()))
        m = 0.9 * m + 0.1 * u
        s = (u - m) ** 2 + 1e-16
        ur, uc = 0.9999 * ur + 0.0001 * s.mean(1), 0.9999 * uc + 0.0001 * s.mean(0)
        weight = weight - 0.1 * m / (torch.outer(ur, uc) / ur.mean()).sqrt()
    torch.testing.assert_close(p.double(), weight, rtol=1e-4, atol=1e-5)


def test_schedules_of_the_rate() -> None:
    cosine = OptimizerSection(learning_rate=1.0, warmup_steps=10, schedule="cosine")
    rates = [rate_at(step, 110, cosine) for step in range(111)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0)
    constant = OptimizerSection(learning_rate=1.0, warmup_steps=0, schedule="constant")
    assert {rate_at(step, 100, constant) for step in range(100)} == {1.0}


def test_logit_normal_times_and_offset_noise_have_their_moments() -> None:
    from pixsigma.config import ScheduleConfig
    from pixsigma.diffusion.schedule import NoiseSchedule

    rng = torch.Generator().manual_seed(0)
    schedule = NoiseSchedule(ScheduleConfig())
    times = (draw_timesteps(40_000, schedule, "logit-normal", rng).float() + 0.5) / 1000
    normal = torch.logit(times)
    assert normal.mean().item() == pytest.approx(0.0, abs=0.02)
    assert normal.std().item() == pytest.approx(1.0, abs=0.02)
    shifted = draw_timesteps(4000, schedule, "stratified", rng, shift=3.0).float()
    assert shifted.median().item() == pytest.approx(750, abs=2)
    assert (shifted < 250).float().mean().item() == pytest.approx(0.1, abs=0.002)
    eps = draw_noise(torch.Size((4000, 4, 4, 4)), 0.5, rng)
    means = eps.mean(dim=(2, 3))
    assert means.var().item() == pytest.approx(1 / 16 + 0.25, abs=0.02)
    plain = draw_noise(torch.Size((2, 4, 8, 8)), 0.0, torch.Generator().manual_seed(3))
    same = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(plain, same)


def test_overrides_are_toml_or_words() -> None:
    assert parse_override("run.steps=3") == ("run.steps", 3)
    assert parse_override("loss.timesteps=uniform") == ("loss.timesteps", "uniform")
    assert parse_override("model.init_from=runs/a=b") == ("model.init_from", "runs/a=b")


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_read(path: Path) -> None:
    if is_chain(path):
        assert len(read_chain(path).stage) > 1
    else:
        assert read_recipe(path).run.steps > 0


SCRIPT = """
import sys
from pathlib import Path
from pixsigma.training.recipe import read_recipe
from pixsigma.training.run import train
changes = {"run.accumulate": int(sys.argv[3])}
list(train(read_recipe(Path(sys.argv[1]), changes), Path(sys.argv[2])))
"""


def test_half_precision_computes_and_keeps_weights_whole(recipe: Path, tmp_path: Path) -> None:
    """In its own process: accelerate has one precision a process."""
    code = SCRIPT.replace("run.accumulate", "run.mixed_precision").replace(
        "int(sys.argv[3])", "sys.argv[3]"
    )
    command = [sys.executable, "-c", code, str(recipe), str(tmp_path / "run"), "bf16"]
    subprocess.run(command, check=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"})
    list(train(read_recipe(recipe), tmp_path / "plain"))
    runs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "plain")]
    losses = [[row["loss"] for row in rows] for rows in runs]
    assert losses[0] == pytest.approx(losses[1], rel=3e-2)
    assert losses[0] != losses[1]
    state = torch.load(latest_checkpoint(tmp_path / "run"), weights_only=True)
    assert {value.dtype for value in state["model"].values()} == {torch.float32}


def test_compression_comes_in_as_an_average(recipe: Path, tmp_path: Path) -> None:
    """Where neighbours are alike, averages are what they average: only the norm is new."""
    list(train(read_recipe(recipe, {"run.steps": 1}), tmp_path / "plain"))
    plan = read_recipe(recipe, {"model.init_from": str(tmp_path / "plain")})
    section = plan.model.model_copy(update={"kv_compression": KVSection(layers=(1,))})
    trainer = Trainer(plan.model_copy(update={"model": section}), tmp_path / "kv")
    attention = trainer.model.blocks[1].attn
    tokens = torch.randn(1, 4, 32)
    mean = torch.nn.functional.layer_norm(tokens.mean(1, keepdim=True), (32,))
    torch.testing.assert_close(attention.compress(tokens, (2, 2)), mean)
    weak = Trainer(plan, tmp_path / "weak").model.state_dict()
    new = {key for key in trainer.model.state_dict() if key not in weak}
    assert new == {f"blocks.1.attn.{n}.{k}" for n in ("sr", "norm") for k in ("weight", "bias")}


def test_compression_of_an_odd_grid_is_refused(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text().replace(
        "[optimizer]", "[model.kv_compression]\nlayers = [1]\nratio = 3\n[optimizer]"
    )
    recipe.write_text(text)
    with pytest.raises(MismatchError, match="multiples of 6"):
        Trainer(read_recipe(recipe), tmp_path / "run")
