"""Conversion there and back, tensor by tensor; and what a file is, told without reading it."""

from pathlib import Path

import pytest
import torch
from tests.small import (
    KINDS,
    SIGMA,
    same,
    small_autoencoder,
    small_text_encoder,
    small_transformer,
)

from pixsigma.errors import InputError, MismatchError, OutputError
from pixsigma.weights import convert as conversion
from pixsigma.weights.convert import convert
from pixsigma.weights.files import Tensors, open_tensors, save_tensors
from pixsigma.weights.folder import read_transformer, save_folder
from pixsigma.weights.info import describe


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_through_every_layout(tmp_path: Path, kind: str):
    model = small_transformer(KINDS[kind])
    save_folder(tmp_path / "a", transformer=model)
    convert(tmp_path / "a", tmp_path / "b.pth", "pth")
    convert(tmp_path / "b.pth", tmp_path / "c.safetensors", "single")
    convert(tmp_path / "c.safetensors", tmp_path / "d", "diffusers")
    for name in ("b.pth", "c.safetensors", "d"):
        found = read_transformer(tmp_path / name)
        assert same(found, model)
        assert found.config == KINDS[kind]


def test_a_pth_is_what_the_authors_code_reads(tmp_path: Path):
    save_folder(tmp_path / "a", transformer=small_transformer())
    convert(tmp_path / "a", tmp_path / "b.pth", "pth")
    content = torch.load(tmp_path / "b.pth", weights_only=True)
    assert set(content["state_dict"]) == set(small_transformer().state_dict())
    assert content["state_dict"]["blocks.0.attn.qkv.weight"].shape == (3 * 72, 72)


def test_an_authors_file_with_its_constants_is_converted(tmp_path: Path):
    state = small_transformer().state_dict()
    state["pos_embed"] = torch.zeros(1, 32 * 32, 72)
    state["y_embedder.y_embedding"] = torch.zeros(300, 16)
    torch.save({"state_dict": state, "optimizer": {}, "epoch": 3}, tmp_path / "renamed.pth")
    convert(tmp_path / "renamed.pth", tmp_path / "a")
    found = read_transformer(tmp_path / "a")
    assert found.config == SIGMA
    assert same(found, small_transformer())


def test_a_conversion_may_cast(tmp_path: Path):
    save_tensors(small_transformer().state_dict(), tmp_path / "a-512.pth")
    convert(tmp_path / "a-512.pth", tmp_path / "b.safetensors", "single", dtype=torch.float16)
    found = open_tensors(tmp_path / "b.safetensors")
    assert {spec.dtype for spec in found.specs.values()} == {torch.float16}
    key = "blocks.1.mlp.fc1.weight"
    assert torch.equal(found[key], small_transformer().state_dict()[key].half())


def test_what_does_not_fit_is_not_written(tmp_path: Path):
    state = dict(small_transformer().state_dict())
    del state["final_layer.linear.bias"]
    save_tensors(state, tmp_path / "a-512.pth")
    with pytest.raises(MismatchError, match=r"missing: final_layer\.linear\.bias"):
        convert(tmp_path / "a-512.pth", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_tensor_that_reads_back_otherwise_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def flipped(tensors: Tensors, path: Path, **_: object) -> None:
        save_tensors({k: -v if "t_block" in k else v for k, v in tensors.items()}, path)

    save_tensors(small_transformer().state_dict(), tmp_path / "a-512.pth")
    monkeypatch.setattr(conversion, "save_tensors", flipped)
    with pytest.raises(OutputError, match="2 tensors"):
        convert(tmp_path / "a-512.pth", tmp_path / "b-512.pth", "pth")


@pytest.mark.parametrize(
    ("target", "to"),
    [("b.safetensors", "pth"), ("b", "single"), ("b.pth", "diffusers"), ("b", "gguf")],
)
def test_a_target_that_does_not_go_with_the_layout_is_told(tmp_path: Path, target: str, to: str):
    save_tensors(small_transformer().state_dict(), tmp_path / "a-512.pth")
    with pytest.raises(InputError, match="layout"):
        convert(tmp_path / "a-512.pth", tmp_path / target, to)


def test_a_file_is_not_converted_onto_itself(tmp_path: Path):
    save_tensors(small_transformer().state_dict(), tmp_path / "a-512.pth")
    with pytest.raises(InputError, match="differ"):
        convert(tmp_path / "a-512.pth", tmp_path / "a-512.pth", "pth")


# Descriptions


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_described(tmp_path: Path, kind: str):
    model = small_transformer(KINDS[kind])
    text, vae = small_text_encoder(), small_autoencoder()
    variant = "alpha" if kind == "alpha" else "sigma"
    save_folder(tmp_path, transformer=model, text_encoder=text, autoencoder=vae, variant=variant)
    info = describe(tmp_path)
    assert (info.kind, info.names, info.variant) == ("folder", "diffusers", variant)
    assert info.resolution == KINDS[kind].sample_size * vae.config.factor
    assert (info.num_layers, info.width, info.precision) == (2, 72, "float32")
    assert (info.qk_norm, info.kv_compression) == (kind == "normed", KINDS[kind].kv_compression)
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, text.encoder, vae)]
    assert [part.num_parameters for part in info.parts] == counts
    assert info.num_parameters == counts[0]
    assert info.bytes_on_disk == sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert info.bytes_in_memory > 4 * sum(counts)


def test_a_file_is_described_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = {k: v.half() if v.dim() > 1 else v for k, v in small_transformer().state_dict().items()}
    save_tensors(state, tmp_path / "Sigma-1024.safetensors")
    monkeypatch.setattr(Tensors, "__getitem__", lambda *_: pytest.fail("a tensor was read"))
    info = describe(tmp_path / "Sigma-1024.safetensors")
    assert (info.kind, info.names, info.resolution) == ("file", "official", 1024)
    assert info.precision == "float16, float32"
    assert info.parts[0].num_bytes == sum(v.nbytes for v in state.values())
