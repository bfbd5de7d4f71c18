"""A prompt that was encoded once is read from disk, and from nowhere else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pixsigma.errors import InputError
from pixsigma.models.t5 import T5Encoder
from pixsigma.models.weighting import encode_weighted
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.placement import Placement, release
from pixsigma.weights import folder as folders
from pixsigma.weights.files import Tensors
from pixsigma.weights.folder import read_text_encoder, save_text_encoder
from pixsigma.weights.prompt_cache import CachedT5, default_folder, fingerprint
from small import TEXT, small_text_encoder

PROMPTS = ["a cat", "a much longer prompt about a cat and a dog"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_text_encoder(small_text_encoder(), tmp_path / "model")
    return tmp_path / "model"


def refuse(*_: object) -> nn.Module:
    raise AssertionError("the encoder was opened")


@pytest.mark.parametrize("stream", [False, True])
def test_a_repeated_prompt_needs_no_encoder(
    model: Path, tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    expected = read_text_encoder(model).encode(PROMPTS)
    first = read_text_encoder(model, stream=stream, prompt_cache=cache)
    assert first.encoder.inner is None
    torch.testing.assert_close(first.encode(PROMPTS).embeddings, expected.embeddings)
    assert first.encoder.inner is not None

    monkeypatch.setattr(folders, "_open_t5", refuse)
    again = read_text_encoder(model, prompt_cache=cache).encode(PROMPTS)
    torch.testing.assert_close(again.embeddings, expected.embeddings)
    assert torch.equal(again.mask, expected.mask)
    with pytest.raises(AssertionError, match="opened"):
        read_text_encoder(model, prompt_cache=cache).encode(["a dog"])


def test_only_what_is_missing_is_computed(model: Path, tmp_path: Path) -> None:
    text = read_text_encoder(model, prompt_cache=tmp_path / "cache")
    text.encode(PROMPTS)
    rows = []
    text.encoder.inner.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    text.encode([PROMPTS[1], "a bird that is as long as the prompt of the dog"])
    assert rows == [1]


def test_weighted_words_are_cached_too(model: Path, tmp_path: Path) -> None:
    spans = [("a red", 1.3), (" cat", 1.0)]
    expected = encode_weighted(read_text_encoder(model), spans)
    for _ in range(2):
        text = read_text_encoder(model, prompt_cache=tmp_path / "cache")
        given = encode_weighted(text, spans)
        torch.testing.assert_close(given.embeddings, expected.embeddings)
    assert text.encoder.inner is None


def test_another_encoder_precision_or_text_is_another_key(tmp_path: Path) -> None:
    encoder = small_text_encoder().encoder
    state = dict(encoder.state_dict())
    changed = state | {"final_norm.weight": state["final_norm.weight"] + 1e-3}
    wide = {key: value.double() for key, value in state.items()}
    marks = {fingerprint(Tensors.of(tensors), TEXT) for tensors in (state, changed, wide)}
    marks.add(fingerprint(Tensors.of(state), replace(TEXT, num_heads=4, d_kv=4)))
    assert len(marks) == 4

    ids, mask = torch.tensor([3, 1, 0]), torch.tensor([True, True, False])
    keys = [("a", torch.float32), ("b", torch.float32), ("a", torch.float16)]
    parts = [CachedT5(tmp_path, TEXT, name, dtype, refuse) for name, dtype in keys]
    files = {part.file_of(ids, mask) for part in parts}
    files |= {parts[0].file_of(ids, ~mask), parts[0].file_of(ids + 1, mask)}
    assert len(files) == 5
    assert parts[0].file_of(ids, mask) in files


def test_a_damaged_file_is_told_and_written_anew(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    expected = read_text_encoder(model, prompt_cache=cache).encode(["a cat"]).embeddings
    (file,) = cache.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.warns(UserWarning, match="encoded again"):
        given = read_text_encoder(model, prompt_cache=cache).encode(["a cat"]).embeddings
    torch.testing.assert_close(given, expected)
    assert file.read_bytes() == whole
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".safetensors"]


def test_a_folder_that_takes_nothing_costs_no_answer(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    expected = read_text_encoder(model).encode(["a cat"]).embeddings
    text = read_text_encoder(model, prompt_cache=cache)
    cache.write_text("where the folder would be")
    with pytest.warns(UserWarning, match="encoded anew next time"):
        given = text.encode(["a cat"]).embeddings
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("stream", [False, True])
def test_layers_behind_the_cache_are_brought_one_by_one(
    model: Path, tmp_path: Path, stream: bool
) -> None:
    expected = read_text_encoder(model).encode(PROMPTS).embeddings
    text = read_text_encoder(model, stream=stream, prompt_cache=tmp_path / "cache")
    placement = Placement(torch.device("cpu"), "sequential")
    placement.settle(text.encoder)
    assert text.encoder.inner is None
    with placement.running(text.encoder):
        given = text.encode(PROMPTS, device="cpu").embeddings
        torch.testing.assert_close(given, expected)
    assert hasattr(text.encoder.inner, "_hf_hook") != stream
    release(text.encoder)
    assert not hasattr(text.encoder.inner, "_hf_hook")


def test_a_cached_encoder_can_be_saved(model: Path, tmp_path: Path) -> None:
    text = read_text_encoder(model, prompt_cache=tmp_path / "cache")
    save_text_encoder(text, tmp_path / "copy")
    given = read_text_encoder(tmp_path / "copy").encoder
    assert isinstance(given, T5Encoder)
    assert torch.equal(given.blocks[1].mlp.wo.weight, text.encoder.inner.blocks[1].mlp.wo.weight)


def test_the_folder_must_be_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="must be a folder"):
        read_text_encoder(model, prompt_cache=tmp_path / "file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "pixsigma" / "prompts"


def test_mini_draws_the_same_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = []
    for _ in range(2):
        pipe = PixArtSigmaPipeline.from_pretrained("mini", prompt_cache=tmp_path)
        pipe.enable_model_cpu_offload("cpu")
        steps = list(pipe.stream("a red apple", seed=1, num_inference_steps=1))
        latents.append(steps[-2].latents)
        monkeypatch.setattr(folders, "_open_t5", refuse)
    assert torch.equal(latents[0], latents[1])
