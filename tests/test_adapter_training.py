"""Adapters trained here: what is moved, what is written, who can read it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pixsigma.adapters import merge
from pixsigma.errors import InputError
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.checkpoint import latest_checkpoint
from pixsigma.training.recipe import Recipe, read_recipe
from pixsigma.training.run import train
from pixsigma.training.trainer import Trainer
from pixsigma.weights.adapters import read_adapter
from pixsigma.weights.folder import save_transformer
from small import SIGMA, small_features, small_transformer

RECIPE = """
features = "{folder}/features.safetensors"
[model]
init_from = "{folder}/base"
[adapter]
kind = "lora"
rank = 4
alpha = 8
[optimizer]
learning_rate = 2e-2
warmup_steps = 0
[run]
steps = 4
batch_size = 4
checkpoint_every = 2
log_every = 2
ema_decay = 0.5
device = "cpu"
"""
KINDS = ["lora", "dora", "loha", "lokr", "oft"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    small_features(folder / "features.safetensors", spread=0.01)
    save_transformer(small_transformer(), folder / "base" / "transformer")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    return folder


def recipe(folder: Path, **changes: Any) -> Recipe:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return read_recipe(folder / "recipe.toml", given)


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Trainer]:
    """A short run of every kind; `alpha` does not belong to oft."""
    found = {}
    text = (folder / "recipe.toml").read_text().replace("alpha = 8\n", "")
    for kind in KINDS:
        path = folder / f"{kind}.toml"
        path.write_text(text if kind == "oft" else (folder / "recipe.toml").read_text())
        plan = read_recipe(path, {"adapter.kind": kind})
        list(train(plan, folder / kind))
        found[kind] = Trainer(plan, folder / kind)
        found[kind].resume()
    return found


def answer(model: Any) -> torch.Tensor:
    torch.manual_seed(1)
    x, text = torch.randn(2, 4, 8, 6), torch.randn(2, 9, SIGMA.caption_channels)
    with torch.no_grad():
        return model(x, torch.tensor([900.0, 20.0]), text)


def adapted(path: Path) -> PixArtTransformer:
    """The base with an adapter's file on, by our own reader."""
    model = small_transformer()
    merge(model, ((read_adapter(path, model), 1.0),), {})
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_what_was_trained(
    folder: Path, runs: dict[str, Trainer], kind: str
) -> None:
    expected = answer(runs[kind].averaged())
    plain = answer(small_transformer())
    assert (expected - plain).norm() > 1e-3 * plain.norm()
    for path in (folder / kind, folder / kind / "adapter" / "comfyui.safetensors"):
        torch.testing.assert_close(answer(adapted(path)), expected, rtol=1e-4, atol=1e-4)
    report = read_adapter(folder / kind, small_transformer()).report
    assert (report.dialect, report.num_modules) == ("peft", 2 * 10)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_it_onto_diffusers(folder: Path, runs: dict[str, Trainer], kind: str) -> None:
    from diffusers import PixArtTransformer2DModel
    from peft import PeftModel

    base = PixArtTransformer2DModel.from_pretrained(folder / "base" / "transformer")
    theirs = PeftModel.from_pretrained(base, folder / kind / "adapter").eval()
    torch.manual_seed(1)
    x, text = torch.randn(2, 4, 8, 6), torch.randn(2, 9, SIGMA.caption_channels)
    with torch.no_grad():
        expected = theirs(
            x,
            encoder_hidden_states=text,
            timestep=torch.tensor([900.0, 20.0]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
    torch.testing.assert_close(answer(runs[kind].averaged()), expected, rtol=1e-4, atol=1e-4)


def test_the_base_stays_and_a_checkpoint_holds_the_adapter_alone(
    folder: Path, runs: dict[str, Trainer]
) -> None:
    trainer = runs["lora"]
    base = small_transformer().state_dict()
    state = torch.load(latest_checkpoint(folder / "lora"), weights_only=True)
    assert all("lora_" in name for name in state["model"])
    assert state["model"].keys() == {k for k in state["ema"] if k != "num_updates"}
    fused = trainer.model.blocks[1].attn.qkv
    rows = torch.cat([part.base_layer.weight for part in fused.children()])
    assert torch.equal(rows, base["blocks.1.attn.qkv.weight"])
    assert not (folder / "lora" / "model").exists()


def test_a_fresh_adapter_changes_nothing(folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe(folder), tmp_path)
    torch.testing.assert_close(answer(trainer.averaged()), answer(small_transformer()))


def test_a_stopped_adapter_goes_on_exactly(folder: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    list(train(recipe(folder), whole))
    calls = iter([False, True])
    list(train(recipe(folder), stopped, stop=lambda: next(calls)))
    list(train(recipe(folder), stopped, resume=True))
    files = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole, stopped)]
    assert all(torch.equal(files[1][key], value) for key, value in files[0].items())


def test_targets_are_ends_of_names(folder: Path, tmp_path: Path) -> None:
    plan = recipe(folder, adapter__targets=["attn1.to_q", "to_out.0"])
    trainer = Trainer(plan, tmp_path)
    assert sorted(trainer.adapted) == [
        "blocks.0.attn.proj",
        "blocks.0.attn.qkv.to_q",
        "blocks.0.cross_attn.proj",
        "blocks.1.attn.proj",
        "blocks.1.attn.qkv.to_q",
        "blocks.1.cross_attn.proj",
    ]
    trainer.save()
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (told["peft_type"], told["r"], told["lora_alpha"]) == ("LORA", 4, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter__targets": ["to_w"]}, "targets are ends of attn1.to_k"),
        ({"adapter__targets": []}, "at least one"),
        ({"adapter__kind": "oft"}, "leave alpha out"),
        ({"model__sample_size": 32}, "init_from and nothing else, got sample_size"),
        ({"adapter__rnak": 3}, "is rank meant"),
    ],
)
def test_bad_adapters_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        Trainer(recipe(folder, **changes), tmp_path)


def test_blocks_of_oft_fill_the_layers(folder: Path, runs: dict[str, Trainer]) -> None:
    with pytest.raises(InputError, match="7 does not divide"):
        Trainer(
            read_recipe(folder / "oft.toml", {"adapter.kind": "oft", "adapter.rank": 7}), folder
        )
