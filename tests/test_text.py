"""Prompts to features: what is cut is told, and neither padding nor neighbours change a row."""

import sys
from pathlib import Path

import pytest
import torch

import pixsigma
from pixsigma.config import T5Config
from pixsigma.errors import CorruptWeightsError, InputError, MissingExtraError, MissingWeightsError
from pixsigma.models.cleaning import clean_caption
from pixsigma.models.t5 import T5Encoder
from pixsigma.models.text import T5TextEncoder, Tokenizer

SPIECE = Path(pixsigma.__file__).parent / "mini" / "tokenizer" / "spiece.model"
SMALL = T5Config(d_model=32, d_kv=8, num_heads=2, d_ff=48, num_layers=2)


@pytest.fixture
def encoder() -> T5TextEncoder:
    torch.manual_seed(0)
    return T5TextEncoder(Tokenizer(SPIECE, max_length=30), T5Encoder(SMALL).eval())


def test_a_cut_prompt_warns_with_the_lost_text():
    tokenizer = Tokenizer(SPIECE, max_length=3)
    with pytest.warns(UserWarning, match=r"3 tokens .* has 6: .* 'on the table'") as caught:
        ids, mask = tokenizer(["the cat on the table"])
    assert caught[0].filename == __file__
    assert ids.shape == mask.shape == (1, 3)
    assert ids[0, -1] == 1


def test_a_prompt_of_exactly_the_limit_does_not_warn():
    tokenizer = Tokenizer(SPIECE, max_length=6)
    ids, _ = tokenizer(["the cat on the table"])
    assert tokenizer.text(ids[0].tolist()) == "the cat on the table"


def test_the_empty_prompt_is_its_end_token(encoder):
    features = encoder.encode([""])
    assert features.embeddings.shape == (1, 1, 32)
    assert features.mask.tolist() == [[True]]


def test_no_prompts_make_an_empty_batch():
    ids, mask = Tokenizer(SPIECE)([])
    assert ids.shape == mask.shape == (0, 1)


def test_padding_is_to_the_longest_or_to_the_limit(encoder):
    prompts = ["the cat", "the cat on the table"]
    assert encoder.encode(prompts).embeddings.shape == (2, 6, 32)
    padded = encoder.encode(prompts, pad_to_max_length=True)
    assert padded.embeddings.shape == (2, 30, 32)
    assert padded.mask.sum(1).tolist() == [3, 6]


def test_rows_do_not_depend_on_padding_or_neighbours(encoder):
    prompts = ["", "the cat", "the cat on the table"]
    together = encoder.encode(prompts)
    padded = encoder.encode(prompts, pad_to_max_length=True)
    for row, prompt in enumerate(prompts):
        alone = encoder.encode([prompt]).embeddings[0]
        torch.testing.assert_close(together.embeddings[row, : len(alone)], alone)
        torch.testing.assert_close(padded.embeddings[row, : len(alone)], alone)


def test_order_of_words_matters(encoder):
    torch.nn.init.normal_(encoder.encoder.position_bias.weight)
    one, other = encoder.encode(["a cat on a dog", "a dog on a cat"]).embeddings
    assert not torch.allclose(one.mean(0), other.mean(0), atol=1e-4)


def test_features_follow_the_encoder(encoder):
    encoder.encoder.bfloat16()
    features = encoder.encode(["the cat"])
    assert features.embeddings.dtype is torch.bfloat16
    assert not features.embeddings.requires_grad


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
def test_a_file_that_is_no_vocabulary_is_told(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CorruptWeightsError, match="git-lfs"):
        Tokenizer(tmp_path / name)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"there is none at .*no\.model"):
        Tokenizer(tmp_path / "no.model")


def test_a_length_without_room_is_refused():
    with pytest.raises(InputError, match="got 0"):
        Tokenizer(SPIECE, max_length=0)


@pytest.mark.parametrize("package", ["ftfy", "bs4"])
def test_cleaning_without_its_extra_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pixsigma\[clean\]'"):
        clean_caption("a cat")


def test_what_no_parser_takes_is_no_markup() -> None:
    pytest.importorskip("bs4")
    pytest.importorskip("ftfy")
    assert "a cat" in clean_caption("<![a cat")
