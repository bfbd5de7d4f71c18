"""A text encoder that stays in its file answers as one that was loaded."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixsigma import memory
from pixsigma.config import T5Config
from pixsigma.errors import CorruptWeightsError, MismatchError
from pixsigma.models import narrow
from pixsigma.models.t5 import T5Encoder
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.placement import Placement
from pixsigma.weights import streaming
from pixsigma.weights.folder import read_text_encoder, save_text_encoder
from pixsigma.weights.mapped import map_tensors
from pixsigma.weights.streaming import Reader, StreamedT5, open_streamed
from small import TEXT, small_text_encoder

PROMPTS = ["a cat", "a much longer prompt about a cat and a dog"]


def saved(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A folder with the small text encoder in a precision."""
    text = small_text_encoder()
    text.encoder.load_state_dict({k: v.to(dtype) for k, v in text.encoder.state_dict().items()})
    for module in text.encoder.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = parameter.data.to(dtype)
    save_text_encoder(text, folder)
    return folder


def sharded(folder: Path) -> Path:
    """The same in three files and an index."""
    whole = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    owner = {}
    for part in range(3):
        keys = sorted(tensors)[part::3]
        name = f"model-{part + 1:05}-of-00003.safetensors"
        save_file({key: tensors[key] for key in keys}, str(whole.with_name(name)))
        owner |= dict.fromkeys(keys, name)
    index = whole.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": owner}))
    return folder


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("split", [False, True])
def test_streamed_answers_are_those_of_the_whole(
    tmp_path: Path, stored: torch.dtype, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, stored)
    folder = sharded(folder) if split else folder
    whole = read_text_encoder(folder, dtype=torch.float32)
    streamed = read_text_encoder(folder, dtype=torch.float32, stream=True)
    assert isinstance(streamed.encoder, StreamedT5)
    expected = whole.encode(PROMPTS)
    for _ in range(2):
        given = streamed.encode(PROMPTS)
        assert torch.equal(given.mask, expected.mask)
        error = given.embeddings - expected.embeddings
        assert error.norm() <= 1e-6 * expected.embeddings.norm()
        monkeypatch.setattr(narrow, "BLOCK_ROWS", 5)  # several blocks a matrix


def test_half_precision_keeps_what_t5_needs_in_full(tmp_path: Path) -> None:
    folder = saved(tmp_path, torch.float16)
    whole = read_text_encoder(folder, dtype=torch.float16)
    streamed = read_text_encoder(folder, dtype=torch.float16, stream=True)
    given, expected = streamed.encode(PROMPTS).embeddings, whole.encode(PROMPTS).embeddings
    assert given.dtype is expected.dtype
    torch.testing.assert_close(given, expected)


def test_only_norms_and_bias_are_in_memory(tmp_path: Path) -> None:
    encoder = read_text_encoder(saved(tmp_path), stream=True).encoder
    names = {name for name, _ in encoder.named_parameters()}
    assert all("norm" in name or "position_bias" in name for name in names)
    assert len(names) == 2 * TEXT.num_layers + 2


def test_its_weights_are_those_of_the_file(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    save_text_encoder(read_text_encoder(folder, stream=True), tmp_path / "b")
    before, after = (load_file(tmp_path / x / "text_encoder/model.safetensors") for x in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_forgotten_pages_come_back_as_they_were(tmp_path: Path) -> None:
    file = saved(tmp_path) / "text_encoder" / "model.safetensors"
    mapped, whole = map_tensors(file), load_file(file)
    for key in whole:
        view = mapped.tensors[key]
        mapped.forget(key)
        mapped.ahead(key)
        mapped.touch(key)
        assert torch.equal(view, whole[key])


def test_two_matrices_of_an_mlp_are_the_most_that_is_in_memory() -> None:
    square, wide = 4096 * 4096, 4096 * 10240  # of T5-XXL
    assert memory.matrices(T5Config())[:7] == (square,) * 4 + (wide,) * 3
    assert streaming.most_at_once(memory.matrices(T5Config())) == 2 * wide
    assert streaming.most_at_once([5, 3]) == 8


def test_the_reader_stays_few_tensors_ahead() -> None:
    class Fake:
        def __init__(self) -> None:
            self.held = 0
            self.most = 0

        def ahead(self, key: str) -> None:
            pass

        def touch(self, key: str) -> None:
            self.held += 1
            self.most = max(self.most, self.held)

        def forget(self, key: str) -> None:
            self.held -= 1

    fake: Any = Fake()
    with Reader(fake, [str(i) for i in range(20)]) as reader:
        for _ in range(20):
            reader.wait()
            reader.done()
    assert fake.most <= streaming.AHEAD
    with Reader(fake, [str(i) for i in range(20)]) as reader:
        reader.wait()  # left early, as by an error: the thread ends all the same
    assert not [t for t in threading.enumerate() if t.name == "pixsigma-reader"]


def test_what_the_thread_meets_is_raised_where_it_matters() -> None:
    class Broken:
        def ahead(self, key: str) -> None:
            pass

        def touch(self, key: str) -> None:
            raise OSError("the disk is gone")

        def forget(self, key: str) -> None:
            pass

    broken: Any = Broken()
    with pytest.raises(OSError, match="disk is gone"), Reader(broken, ["a"]) as reader:
        reader.wait()


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path) / "text_encoder" / "model.safetensors"
    with pytest.raises(MismatchError, match="missing"):
        open_streamed(file, replace(TEXT, num_layers=3), None)
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    with pytest.raises(MismatchError, match="only safetensors"):
        open_streamed(tmp_path / "pytorch_model.bin", TEXT, None)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptWeightsError):
        open_streamed(file, TEXT, None)


@pytest.mark.parametrize("hold", [0, 3000, 10**9])
def test_what_is_held_is_read_once(tmp_path: Path, hold: int) -> None:
    file = saved(tmp_path) / "text_encoder" / "model.safetensors"
    read: list[str] = []
    encoder = open_streamed(file, TEXT, None, hold)
    mapped = encoder._reader._mapped
    touch = mapped.touch
    mapped.touch = lambda key: (read.append(key), touch(key))[1]  # type: ignore[method-assign]
    ids = torch.tensor([[5, 6, 7]])
    first = encoder(ids)
    whole, again = len(read), len(read)
    assert torch.equal(encoder(ids), first)
    again = len(read) - whole
    sizes = [mapped.tensors[key].nbytes for key in read[:whole]]
    held = sum(1 for i in range(whole) if sum(sizes[: i + 1]) <= hold)
    assert again == whole - held == {0: whole, 10**9: 0}.get(hold, again)
    encoder.read_only()
    assert len(read) == whole + 2 * again


@pytest.mark.parametrize("mode", ["resident", "model", "sequential"])
def test_every_placement_takes_it(tmp_path: Path, mode: Any) -> None:
    encoder = read_text_encoder(saved(tmp_path), stream=True)
    expected = encoder.encode(PROMPTS).embeddings
    placement = Placement(torch.device("cpu"), mode)
    placement.settle(encoder.encoder)
    with placement.running(encoder.encoder):
        assert torch.equal(encoder.encode(PROMPTS).embeddings, expected)


def test_mini_draws_the_same_with_a_streamed_encoder() -> None:
    settings = {"seed": 1, "num_inference_steps": 1}
    whole = PixArtSigmaPipeline.from_pretrained("mini")
    assert isinstance(whole.text_encoder.encoder, T5Encoder)
    streamed = PixArtSigmaPipeline.from_pretrained("mini", stream_text=True)
    a, b = (list(pipe.stream("a red apple", **settings))[-2].latents for pipe in (whole, streamed))
    assert a is not None and b is not None
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
