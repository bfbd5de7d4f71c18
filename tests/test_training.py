"""The run: every row once an epoch, exact resumption, a loss that falls."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from pixsigma.config import ScheduleConfig
from pixsigma.data.batching import epoch_order
from pixsigma.data.features import Batch, FeatureSet
from pixsigma.data.shards import open_features
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError, MismatchError, MissingWeightsError, NotFiniteError
from pixsigma.presets import Variant
from pixsigma.training.checkpoint import latest_checkpoint
from pixsigma.training.ema import Ema
from pixsigma.training.optim import Muon, optimizers, orthogonalized, rate_at
from pixsigma.training.reading import Ahead
from pixsigma.training.recipe import OptimizerSection, Recipe, read_recipe
from pixsigma.training.sections import (
    DistillSection,
    LossSection,
    ModelSection,
    ValidationSection,
)
from pixsigma.training.trainer import Stream, Trainer
from pixsigma.weights.folder import open_transformer, save_folder
from small import small_features

WEIGHTS = "diffusion_pytorch_model.safetensors"
RECIPE = """
features = "{features}"
[model]
num_layers = 2
num_attention_heads = 2
attention_head_dim = 16
caption_channels = 12
sample_size = 4
interpolation_scale = 0.0625
[optimizer]
name = "{optimizer}"
learning_rate = 2e-3
warmup_steps = 2
[run]
steps = {steps}
batch_size = 3
checkpoint_every = 4
log_every = 2
mixed_precision = "{precision}"
"""


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return small_features(tmp_path / "features.safetensors", 12, num=7, spread=0.01)


def recipe(
    features: Path, steps: int = 8, optimizer: str = "adamw", precision: str = "no"
) -> Recipe:
    path = features.with_name("recipe.toml")
    told = {"steps": steps, "optimizer": optimizer, "precision": precision}
    path.write_text(RECIPE.format(features=features, **told))
    return read_recipe(path)


@pytest.mark.parametrize(
    ("optimizer", "precision"), [("adamw", "no"), ("muon", "no"), ("muon", "bf16")]
)
def test_a_killed_run_ends_as_one_never_stopped(
    features: Path, tmp_path: Path, optimizer: str, precision: str
) -> None:
    plan = recipe(features, optimizer=optimizer, precision=precision)
    whole = Trainer(plan, tmp_path / "whole")
    list(whole.run())

    killed = Trainer(plan, tmp_path / "killed")
    for progress in killed.run():
        if progress.step == 6:  # the checkpoint is of step 4: two steps are lost and done again
            break
    resumed = Trainer(plan, tmp_path / "killed")
    resumed.resume()
    assert resumed.step == 4
    list(resumed.run())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    for name, value in whole.ema.shadow.items():
        assert torch.equal(resumed.ema.shadow[name], value), name
    assert (tmp_path / "killed" / "model" / "transformer" / "config.json").is_file()


def test_a_higher_resolution_starts_from_the_weaker_model(features: Path, tmp_path: Path) -> None:
    weak = Trainer(recipe(features, steps=2), tmp_path / "weak")
    list(weak.run())
    stored = (tmp_path / "weak" / "model" / "transformer" / WEIGHTS).read_bytes()
    plan = read_recipe(
        features.with_name("recipe.toml"),
        {
            "model.init_from": str(tmp_path / "weak" / "model" / "transformer"),
            "model.sample_size": 8,
            "model.interpolation_scale": 0.125,
        },
    )
    strong = Trainer(plan, tmp_path / "strong")
    for name, value in weak.ema.shadow.items():
        assert torch.equal(strong.model.state_dict()[name], value), name
    coarse, fine = (m.positions(4, 4, torch.device("cpu")) for m in (weak.model, strong.model))
    assert torch.equal(coarse, fine)  # both span the same square
    list(strong.run())
    assert (tmp_path / "weak" / "model" / "transformer" / WEIGHTS).read_bytes() == stored
    with pytest.raises(MismatchError, match="another model"):
        Trainer(
            plan.model_copy(update={"model": plan.model.model_copy(update={"num_layers": 3})}),
            tmp_path / "other",
        )


@pytest.mark.parametrize("family", ["alpha", "sigma"])
def test_a_trained_model_is_of_the_family_it_began_with(
    features: Path, tmp_path: Path, family: Variant
) -> None:
    plan = recipe(features, steps=1)
    begun = tmp_path / "begun"
    save_folder(begun, transformer=Trainer(plan, tmp_path / "fresh").model, variant=family)
    told = plan.model_copy(update={"model": ModelSection(init_from=str(begun))})
    list(Trainer(told, tmp_path / "run").run())
    trained = tmp_path / "run" / "model" / "transformer"
    assert open_transformer(trained).detected.variant == family
    # the weights' file alone tells it too
    assert open_transformer(trained / WEIGHTS).detected.variant == family


def test_what_the_network_predicts_is_the_recipes_choice(features: Path, tmp_path: Path) -> None:
    recipe(features)
    path = features.with_name("recipe.toml")
    for kind in ("epsilon", "v_prediction"):
        trainer = Trainer(read_recipe(path, {"loss.prediction_type": kind}), tmp_path / kind)
        assert trainer.schedule.config.prediction_type == kind


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_loss_falls(features: Path, tmp_path: Path, precision: str) -> None:
    plan = recipe(features, steps=120, optimizer="muon", precision=precision)
    trainer = Trainer(plan, tmp_path / "run")
    losses = [p.loss for p in trainer.run()]
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_every_row_comes_once_an_epoch(features: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe(features), tmp_path / "run")
    seen: list[int] = []

    class Spy(FeatureSet):
        def batch(self, rows: torch.Tensor, drop_caption: float, rng: torch.Generator) -> Batch:
            seen.extend(rows.tolist())
            return super().batch(rows, drop_caption, rng)

    data = Spy(**vars(FeatureSet.load(features)))
    trainer.streams = [Stream(data, trainer.order(data))]
    for trainer.step in range(7):  # 21 rows: three epochs, batches across their borders
        trainer.training_step()
    for epoch in range(3):
        assert sorted(seen[epoch * 7 : epoch * 7 + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]
    assert seen[:7] == epoch_order(7, 0, seed=0).tolist()


def prepared(folder: Path, text_width: int = 12) -> Path:
    """A folder as `prepare` writes it: five pictures of 4x4 latents, four of 2x8."""
    torch.manual_seed(0)
    folder.mkdir()
    shards = []
    for num, height, width in ((2, 4, 4), (3, 4, 4), (4, 2, 8)):
        name = f"{len(shards)}.safetensors"
        tensors = {
            "mean": torch.randn(num, 4, height, width).half(),
            "std": torch.rand(num, 4, height, width).half(),
            "text": torch.randn(5, text_width).half(),
            "text_offsets": torch.tensor([0, 2, 5]),
            "captions": torch.tensor([[0, 1]] * num),
            "caption_long": torch.tensor([[False, True]] * num),
        }
        save_file(tensors, folder / name)
        size = {"height": 8 * height, "width": 8 * width}
        shards.append({"file": name, "rows": num, **size})
    null = {"null_text": torch.zeros(1, 6, text_width), "null_mask": torch.arange(6)[None] < 1}
    save_file(null, folder / "null.safetensors")
    index = {"format": 1, "channels": 4, "factor": 8, "text_width": text_width, "shards": shards}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_a_killed_run_on_buckets_ends_as_one_never_stopped(tmp_path: Path) -> None:
    plan = recipe(prepared(tmp_path / "data"))
    whole = Trainer(plan, tmp_path / "whole")
    list(whole.run())
    killed = Trainer(plan, tmp_path / "killed")
    for progress in killed.run():
        if progress.step == 6:
            break
    resumed = Trainer(plan, tmp_path / "killed")
    resumed.resume()
    list(resumed.run())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_features_that_do_not_fit_are_told_before_the_first_step(
    features: Path, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match="width 10, the transformer takes caption_channels"):
        Trainer(recipe(prepared(tmp_path / "narrow", text_width=10)), tmp_path / "run")
    tensors = load_file(features)
    tensors |= {name: torch.zeros(7, 4, 4, 5) for name in ("mean", "std")}
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(MismatchError, match=r"\(4, 4, 5\).*multiples of 2"):
        Trainer(recipe(tmp_path / "odd.safetensors"), tmp_path / "run")
    plan = recipe(prepared(tmp_path / "data"))
    large = plan.model_copy(update={"run": plan.run.model_copy(update={"batch_size": 5})})
    with pytest.raises(InputError, match="smallest of 2 has 4"):
        Trainer(large, tmp_path / "run")
    with pytest.raises(MismatchError, match="which captions are long"):
        open_features(features, long_captions=0.5)


def test_dropped_captions_become_the_empty_one(features: Path) -> None:
    data = FeatureSet.load(features)
    rng = torch.Generator().manual_seed(0)
    batch = data.batch(torch.arange(7), 1.0, rng)
    assert (batch.text.embeddings == 0).all()
    assert (batch.text.mask.sum(dim=1) == 1).all()
    kept = data.batch(torch.arange(7), 0.0, rng)
    for row, captions in zip(kept.text.embeddings, data.captions, strict=True):
        assert any(torch.equal(row, data.text[c]) for c in captions[captions >= 0])


def test_a_broken_loss_stops_the_run_and_keeps_the_checkpoint(
    features: Path, tmp_path: Path
) -> None:
    trainer = Trainer(recipe(features), tmp_path / "run")
    run = trainer.run()
    next(run), next(run), next(run)
    good = latest_checkpoint(trainer.out).read_bytes()
    with torch.no_grad():
        trainer.model.final_layer.linear.weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="last checkpoint is intact"):
        list(run)
    assert latest_checkpoint(trainer.out).read_bytes() == good


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalized_brings_singular_values_near_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8)):
        matrices = torch.randn(shape)
        found = orthogonalized(matrices.to(dtype))
        assert found.dtype == dtype
        values = torch.linalg.svdvals(found.float())
        assert values.min() > 0.6
        assert values.max() < 1.3
        exact = orthogonalized(matrices.double())
        # five quintics, each rounded to 8 bits, turn a matrix by a few hundredths
        assert (found - exact).norm() < (1e-5 if dtype == torch.float32 else 0.05) * exact.norm()


def test_muon_computes_in_the_precision_of_the_run(features: Path, tmp_path: Path) -> None:
    moved = []
    for precision in (None, torch.bfloat16):
        weight = torch.nn.Parameter(torch.zeros(8, 20))
        weight.grad = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=1.0, precision=precision).step()
        moved.append(weight.detach())
    assert (moved[0] - moved[1]).norm() < 0.05 * moved[0].norm()
    assert not torch.equal(*moved)
    for name, dtype in (("no", None), ("bf16", torch.bfloat16)):
        trainer = Trainer(recipe(features, optimizer="muon", precision=name), tmp_path / name)
        muon = trainer.optimizers[0]
        assert isinstance(muon, Muon) and muon.precision == dtype


def test_muon_takes_the_matrices_of_blocks_and_each_weight_has_one_optimizer(
    features: Path, tmp_path: Path
) -> None:
    trainer = Trainer(recipe(features, optimizer="muon"), tmp_path / "run")
    muon, adamw = optimizers(trainer.model, trainer.recipe.optimizer)
    assert isinstance(muon, Muon)
    groups = [id(p) for o in (muon, adamw) for g in o.param_groups for p in g["params"]]
    assert sorted(groups) == sorted(id(p) for p in trainer.model.parameters())
    assert len(muon.param_groups[0]["params"]) == 2 * 7


def test_ema_is_the_weighted_mean_of_what_it_saw() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = Ema(model, decay=0.9)
    expected = 0.0
    for n, value in enumerate([1.0, 2.0, 5.0]):
        torch.nn.init.constant_(model.weight, value)
        ema.update(model)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.shadow["weight"].item() == pytest.approx(expected)


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    section = OptimizerSection(learning_rate=1.0, warmup_steps=10, cooldown_share=0.2)
    rates = [rate_at(step, 100, section) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert all(rate == 1 for rate in rates[10:80])
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)


def test_wrong_recipes_and_features_are_told(features: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(RECIPE.format(features=features, steps=8, optimizer="sgd", precision="no"))
    with pytest.raises(InputError, match=r"optimizer\.name"):
        read_recipe(path)
    with pytest.raises(InputError, match=r"run\.stpes"):
        good = tmp_path / "good.toml"
        good.write_text(RECIPE.format(features=features, steps=8, optimizer="muon", precision="no"))
        read_recipe(good, {"run.stpes": 3})
    with pytest.raises(MissingWeightsError):
        FeatureSet.load(tmp_path / "nothing")
    save_file({"mean": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(MismatchError, match="lacks"):
        FeatureSet.load(tmp_path / "other.safetensors")


def test_the_coming_step_is_read_ahead_and_errors_come_where_they_belong() -> None:
    asked: list[int] = []

    def read(step: int) -> int:
        asked.append(step)
        if step == 3:
            raise InputError("nothing there")
        return 10 * step

    ahead = Ahead(read)
    assert [ahead.at(step, last=False) for step in (0, 1, 2)] == [0, 10, 20]
    with pytest.raises(InputError, match="nothing there"):
        ahead.at(3, last=False)
    assert ahead.at(7, last=True) == 70  # a run that goes on begins anywhere
    assert sorted(asked) == [0, 1, 2, 3, 7]
    assert 0 <= ahead.waited < 10


def test_noise_is_of_the_seed_the_step_and_the_part() -> None:
    def drawn(seed: int, step: int, part: int) -> float:
        run: Any = SimpleNamespace(recipe=SimpleNamespace(run=SimpleNamespace(seed=seed)))
        return torch.rand((), generator=Trainer.randomness(run, step, part)).item()

    places = [(0, 1, 0), (1, 1, 0), (3, 1, 0), (0, 2, 0), (0, 1, 1), (0, 2**18 + 1, 0)]
    assert len({drawn(*place) for place in places}) == len(places)
    assert drawn(0, 1, 0) == drawn(0, 1, 0)


def saved_model(plan: Recipe, tmp_path: Path, prediction_type: str) -> Path:
    """A folder with the network of a recipe and a schedule that says what it predicts."""
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type))
    save_folder(
        tmp_path / prediction_type,
        transformer=Trainer(plan, tmp_path / "r").model,
        schedule=schedule,
    )
    return tmp_path / prediction_type


def test_a_loss_for_another_target_than_the_models_is_refused(
    features: Path, tmp_path: Path
) -> None:
    plan = recipe(features)
    other = saved_model(plan, tmp_path, "v_prediction")
    begun = ModelSection(init_from=str(other))
    with pytest.raises(MismatchError, match=r"predicts v_prediction: say.*\[loss\], got epsilon"):
        Trainer(plan.model_copy(update={"model": begun}), tmp_path / "a")
    loss = LossSection(prediction_type="v_prediction")
    Trainer(plan.model_copy(update={"model": begun, "loss": loss}), tmp_path / "b")
    same = ModelSection(init_from=str(saved_model(plan, tmp_path, "epsilon")))
    taught = {"model": same, "distill": DistillSection(teacher=str(other))}
    with pytest.raises(MismatchError, match="predicts v_prediction"):
        Trainer(plan.model_copy(update=taught), tmp_path / "c")
    bare = ModelSection(init_from=str(other / "transformer"))
    Trainer(plan.model_copy(update={"model": bare}), tmp_path / "d")  # weights alone do not tell


def test_batches_that_cannot_be_parted_and_odd_validation_are_told_first(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = recipe(features)
    wide = small_features(tmp_path / "wide.safetensors", 10, num=7, spread=0.01)
    looked = plan.model_copy(update={"validation": ValidationSection(features=wide)})
    with pytest.raises(MismatchError, match=r"wide\.safetensors have width 10"):
        Trainer(looked, tmp_path / "a")
    parted = plan.run.model_copy(update={"batch_size": 6, "accumulate": 2})
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(InputError, match=r"among 2 processes and accumulate = 2: .* multiple of 4"):
        Trainer(plan.model_copy(update={"run": parted}), tmp_path / "b")


def test_overrides_that_lead_through_a_value_and_muon_in_fp16_are_refused(features: Path) -> None:
    path = features.with_name("recipe.toml")
    recipe(features, optimizer="muon")
    with pytest.raises(InputError, match="inside a value, 8"):
        read_recipe(path, {"run.steps.more.still": 1})
    with pytest.raises(InputError, match=r"--set run\.steps\.more: steps is no section"):
        read_recipe(path, {"run.steps.more": 1})
    with pytest.raises(InputError, match="muon is two optimisers"):
        read_recipe(path, {"run.mixed_precision": "fp16"})
