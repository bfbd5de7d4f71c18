"""A text encoder in 8 bits: written layer by layer, opened at once, near the one it is made of."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.small import TEXT, small_text_encoder
from typer.testing import CliRunner

from pixsigma.cli import app
from pixsigma.errors import InputError, MismatchError, MissingWeightsError
from pixsigma.models import narrow, products
from pixsigma.models.narrow import product
from pixsigma.models.quantized import quantize_rows
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.weights.folder import read_text_encoder, save_text_encoder
from pixsigma.weights.streaming import StreamedT5
from pixsigma.weights.text_int8 import save_int8_text

PROMPTS = ["a cat", "a much longer prompt about a cat and a dog"]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The small text encoder as it is, and in 8 bits."""
    save_text_encoder(small_text_encoder(), tmp_path / "full")
    return tmp_path / "full", save_int8_text(tmp_path / "full", tmp_path / "small")


@pytest.mark.parametrize("rows", [5, 60])
@pytest.mark.parametrize("vnni", [False, True])
def test_rows_have_scales_of_their_own(
    rows: int, vnni: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow, "saturates", lambda: not vnni)
    torch.manual_seed(0)
    weight, x = torch.randn(24, 32), torch.randn(rows, 32)
    x[1] *= 1e4
    x[2] = 0
    numbers, scale = quantize_rows(weight)
    given = product(x[None], numbers, torch.float32, scale)[0]
    expected = x @ weight.T
    error = (given - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-9)
    assert torch.equal(given[2], torch.zeros(24))
    assert error.max() <= 0.02
    # inputs are rounded with VNNI only; beyond that, both are the product of the rounded weight
    exact = x @ (numbers * scale[:, None]).T
    assert torch.allclose(given, exact, rtol=1e-5, atol=1e-5) != vnni


@pytest.mark.parametrize("vnni", [False, True])
def test_half_precision_holds_what_its_answer_needs(
    vnni: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow, "saturates", lambda: not vnni)
    torch.manual_seed(0)
    weight, x = 0.1 * torch.randn(24, 512), 25 * torch.randn(5, 512)
    numbers, scale = quantize_rows(weight)
    expected = x @ weight.T
    assert expected.abs().max() / scale.min() > torch.finfo(torch.float16).max
    given = product(x.half()[None], numbers, torch.float16, scale)[0]
    assert (given.float() - expected).norm() <= 0.02 * expected.norm()


def test_nan_stays_nan() -> None:
    numbers, scale = quantize_rows(torch.randn(4, 8))
    x = torch.ones(2, 8)
    x[0, 3] = torch.nan
    y = product(x, numbers, torch.float32, scale)
    assert y[0].isnan().all() and y[1].isfinite().all()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_weights_are_multiplied_as_wide_ones(
    stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow, "BLOCK_ROWS", 17)
    torch.manual_seed(0)
    weight, x = torch.randn(50, 30).to(stored), torch.randn(2, 7, 30)
    expected = x @ weight.float().T
    for onednn in (False, True):
        monkeypatch.setattr(products, "has_onednn_linear", lambda it=onednn: it)
        given = product(x, weight, torch.float32)
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stream", [False, True, 2000])
def test_answers_are_near_whatever_stays(folders: tuple[Path, Path], stream: bool | int) -> None:
    full, small = folders
    expected = read_text_encoder(full).encode(PROMPTS)
    opened = read_text_encoder(small, stream=stream)
    assert isinstance(opened.encoder, StreamedT5)
    first, second = (opened.encode(PROMPTS).embeddings for _ in range(2))
    assert torch.equal(first, second)
    error = (first - expected.embeddings)[expected.mask]
    assert 0 < error.norm() <= 0.1 * expected.embeddings[expected.mask].norm()


def test_a_prompt_does_not_depend_on_those_beside_it(folders: tuple[Path, Path]) -> None:
    encoder = read_text_encoder(folders[1])
    together, alone = encoder.encode(PROMPTS), encoder.encode(PROMPTS[:1])
    length = alone.embeddings.shape[1]
    torch.testing.assert_close(together.embeddings[0, :length], alone.embeddings[0])


def test_files_are_half_of_fp16_and_others_are_told(folders: tuple[Path, Path]) -> None:
    part = folders[1] / "text_encoder"
    config = json.loads((part / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "pixsigma-int8"}
    index = json.loads((part / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) == TEXT.num_layers + 1
    assert sum("weight_scale" in key for key in index) == 7 * TEXT.num_layers


def test_it_is_saved_again_as_it_is(folders: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = read_text_encoder(folders[1])
    save_text_encoder(encoder, tmp_path / "again")
    again = read_text_encoder(tmp_path / "again")
    assert torch.equal(again.encode(PROMPTS).embeddings, encoder.encode(PROMPTS).embeddings)


def test_what_cannot_be_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    full, small = folders
    with pytest.raises(MismatchError, match="8 bits already"):
        save_int8_text(small, tmp_path / "twice")
    with pytest.raises(InputError, match="must differ"):
        save_int8_text(full, full)


def test_without_a_tokenizer_nothing_is_written(tmp_path: Path) -> None:
    save_text_encoder(small_text_encoder(), tmp_path / "full")
    shutil.rmtree(tmp_path / "full" / "tokenizer")
    with pytest.raises(MissingWeightsError, match="tokenizer"):
        save_int8_text(tmp_path / "full", tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_the_words_that_it_knows_come_along(tmp_path: Path) -> None:
    text = small_text_encoder()
    text.words = frozenset({"cat", "dog"})
    save_text_encoder(text, tmp_path / "full")
    assert read_text_encoder(save_int8_text(tmp_path / "full", tmp_path / "small")).words == {
        "cat",
        "dog",
    }


def test_mini_draws_with_it(tmp_path: Path) -> None:
    target = tmp_path / "text"
    done = CliRunner().invoke(app, ["convert", "mini", str(target), "--to", "text-int8"])
    assert done.exit_code == 0, done.output
    settings = {"seed": 1, "num_inference_steps": 1}
    pipes = (
        PixArtSigmaPipeline.from_pretrained("mini"),
        PixArtSigmaPipeline.from_pretrained(
            "mini", text_encoder=read_text_encoder(target, max_tokens=64)
        ),
    )
    a, b = (list(pipe.stream("a red apple", **settings))[-2].latents for pipe in pipes)
    assert a is not None and b is not None
    assert 0 < (a - b).norm() <= 0.1 * a.norm()
