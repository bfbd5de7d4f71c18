"""Files: nothing in them runs, damage is told, and a file is there whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixsigma.errors import (
    CorruptWeightsError,
    InputError,
    MismatchError,
    MissingWeightsError,
    OutputError,
    UnsafeWeightsError,
)
from pixsigma.weights import files
from pixsigma.weights.files import open_tensors, read_json, save_tensors, write_json

TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_what_is_written_is_read(tmp_path: Path, name: str):
    save_tensors(TENSORS, tmp_path / name, metadata={"k": "v"})
    found = open_tensors(tmp_path / name)
    assert found.specs["a"].shape == (3, 4)
    assert found.num_bytes == 12 * 4 + 2 * 2
    assert found.metadata["k"] == "v"
    assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(KeyError):
        found["c"]


def test_a_written_file_has_the_rights_that_the_umask_gives(tmp_path: Path):
    before = os.umask(0o022)
    try:
        save_tensors(TENSORS, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o644


def test_views_of_a_larger_tensor_are_written_as_they_are(tmp_path: Path):
    whole = torch.randn(64, 1000)
    save_tensors({"a": whole[:1], "b": whole[1:2], "c": whole[:, 3]}, tmp_path / "w.safetensors")
    save_tensors({"a": whole[:1]}, tmp_path / "w.pth")
    found = open_tensors(tmp_path / "w.safetensors")
    assert torch.equal(found["b"], whole[1:2])
    assert torch.equal(found["c"], whole[:, 3])
    assert (tmp_path / "w.pth").stat().st_size < 3 * 4000


def test_a_tensor_of_a_mapped_file_is_not_read_into_memory(tmp_path: Path):
    save_tensors({"a": torch.zeros(100_000)}, tmp_path / "w.safetensors")
    tensor = open_tensors(tmp_path / "w.safetensors")["a"]
    place = tensor.data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in maps if line[-1].endswith("w.safetensors")]
    assert any(int(start, 16) <= place < int(end, 16) for start, end in spans)


def test_shards_are_one(tmp_path: Path):
    index = _sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    found = open_tensors(index)
    assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


def test_a_shard_that_is_not_there_is_told(tmp_path: Path):
    index = _sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match=r"two\.safetensors"):
        open_tensors(index)


def test_a_tensor_in_the_index_and_in_no_shard_is_told(tmp_path: Path):
    index = _sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    places = {"a": "one.safetensors", "c": "two.safetensors"}
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CorruptWeightsError, match=r"1 tensors .* c$"):
        open_tensors(index)


def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path):
    save_file({"a": TENSORS["a"]}, tmp_path / "secret.safetensors")
    (tmp_path / "in").mkdir()
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(MissingWeightsError):
        open_tensors(index)


@pytest.mark.parametrize("cut", [0, 4, 40, -4])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_corrupt(tmp_path: Path, suffix: str, cut: int):
    path = tmp_path / f"w{suffix}"
    save_tensors(TENSORS, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptWeightsError, match="fetch it again"):
        open_tensors(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_noise_and_web_pages_are_corrupt(tmp_path: Path, suffix: str):
    for content in (b"\xff" * 99, b"<!DOCTYPE html><title>404</title>", b"version https://git-lfs"):
        (tmp_path / f"w{suffix}").write_bytes(content)
        with pytest.raises(CorruptWeightsError):
            open_tensors(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["state_dict", "beside"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool, place: str):
    content = {"state_dict": {"a": TENSORS["a"]}, place: Bomb(tmp_path / "ran")}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeWeightsError, match=r"refers to code: posix\.mkdir"):
        open_tensors(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "opcodes", [b"(iposix\nmkdir\n.", b"cbuiltins\neval\n(X\x01\x00\x00\x001tR."]
)
def test_every_way_to_code_is_refused(tmp_path: Path, opcodes: bytes):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02" + opcodes)
    with pytest.raises(UnsafeWeightsError):
        open_tensors(tmp_path / "w.pth")


def test_files_of_old_torch_are_read(tmp_path: Path):
    torch.save(TENSORS, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(open_tensors(tmp_path / "w.pth")["a"], TENSORS["a"])


def test_averaged_weights_are_taken_when_asked_for(tmp_path: Path):
    averaged = {"a": TENSORS["a"] * 2}
    torch.save({"state_dict": TENSORS, "state_dict_ema": averaged, "epoch": 3}, tmp_path / "w.pth")
    torch.save({"state_dict": TENSORS}, tmp_path / "plain.pth")
    assert torch.equal(open_tensors(tmp_path / "w.pth")["a"], TENSORS["a"])
    assert torch.equal(open_tensors(tmp_path / "w.pth", ema=True)["a"], averaged["a"])
    with pytest.raises(MismatchError, match="state_dict_ema"):
        open_tensors(tmp_path / "plain.pth", ema=True)


@pytest.mark.parametrize("content", [{"epoch": 3}, [TENSORS["a"]], {"state_dict": {}}])
def test_a_pickle_without_weights_is_told(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(MismatchError):
        open_tensors(tmp_path / "w.pth")


def test_what_is_not_there_or_no_weights_is_told(tmp_path: Path):
    with pytest.raises(MissingWeightsError, match="none at"):
        open_tensors(tmp_path / "w.pth")
    (tmp_path / "w.onnx").touch()
    with pytest.raises(MissingWeightsError, match=r"\.onnx"):
        open_tensors(tmp_path / "w.onnx")
    with pytest.raises(InputError, match=r"w\.onnx"):
        save_tensors(TENSORS, tmp_path / "w.onnx")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    save_tensors(TENSORS, tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*No space left"):
        save_tensors({"a": torch.zeros(5)}, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), files.atomic_write(tmp_path / "w.pth") as temp:
        temp.write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.json"])
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, name: str):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        if name == "w.json":
            write_json(tmp_path / "file" / name, {})
        else:
            save_tensors(TENSORS, tmp_path / "file" / name)


def test_json_that_is_no_object_is_told(tmp_path: Path):
    write_json(tmp_path / "c.json", {"Σ": 1})
    assert read_json(tmp_path / "c.json") == {"Σ": 1}
    for content in ("{", "[1]"):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(CorruptWeightsError):
            read_json(tmp_path / "c.json")
    with pytest.raises(MissingWeightsError):
        read_json(tmp_path / "d.json")


def _sharded(folder: Path, places: dict[str, str]) -> Path:
    for key, name in places.items():
        save_file({key: TENSORS[key]}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 52}, "weight_map": places}))
    return index
