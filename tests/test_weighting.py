"""Weights on words, and prompts beyond the limit."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small import SPIECE, small_text_encoder

from pixsigma.errors import InputError
from pixsigma.models.text import END, PAD, Tokenizer
from pixsigma.models.weighting import encode_weighted, token_weights, windows

TOKENIZER = Tokenizer(SPIECE)


def pieces(text: str) -> list[tuple[str, str]]:
    """Every token with the characters of the prompt that end where it ends."""
    ends = [0, *TOKENIZER.pieces.ends(text)]
    return [
        (TOKENIZER.text([token]), text[begin:end])
        for token, (begin, end) in zip(TOKENIZER.ids(text), pairwise(ends), strict=False)
    ]


def test_tokens_know_where_they_end() -> None:
    for piece, shown in pieces("A small cactus,  with a happy face\nin the Sahara"):
        assert piece.strip() == shown.strip()
    assert TOKENIZER.pieces.ends("ab<extra_id_3>cd")[-1] == 16


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.text(), st.just("ﬁne … ½ ① é <pad> x")))
def test_there_is_one_end_for_each_token(text: str) -> None:
    ends = TOKENIZER.pieces.ends(text)
    assert len(ends) == len(TOKENIZER.ids(text)) - 1
    assert ends == sorted(ends) and all(0 <= end <= len(text) for end in ends)


def test_a_token_has_the_weight_of_its_last_character() -> None:
    spans = [("a ", 1.0), ("red", 2.0), (" cat", 0.5)]
    weights = token_weights(TOKENIZER, spans)
    assert len(weights) == len(TOKENIZER.ids("a red cat")) and weights[-1] == 1.0
    ends = TOKENIZER.pieces.ends("a red cat")
    expected = [2.0 if 2 < end <= 5 else 0.5 if end > 5 else 1.0 for end in ends]
    assert weights[:-1] == expected and set(expected) == {1.0, 2.0, 0.5}


def test_weight_1_is_the_plain_prompt_to_the_last_bit() -> None:
    encoder = small_text_encoder()
    plain = encoder.encode(["a red cat"])
    for spans in ([("a red cat", 1.0)], [("a ", 1.0), ("red cat", 1.0)]):
        found = encode_weighted(encoder, spans)
        assert torch.equal(found.embeddings, plain.embeddings)
        assert torch.equal(found.mask, plain.mask)


def test_weights_lead_from_the_empty_prompt() -> None:
    encoder = small_text_encoder()
    spans = [("a ", 1.0), ("red", 1.5), (" cat", 0.0)]
    plain, found = encoder.encode(["a red cat"]), encode_weighted(encoder, spans)
    length = plain.mask.shape[1]
    ids = torch.tensor([[END] + [PAD] * (length - 1)])
    null = encoder.encoder(ids, ids == END)[0]
    for i, weight in enumerate(token_weights(TOKENIZER, spans)):
        expected = (1 - weight) * null[i] + weight * plain.embeddings[0, i]
        torch.testing.assert_close(found.embeddings[0, i], expected)
    assert torch.equal(found.embeddings[0, 0], plain.embeddings[0, 0])


LONG = "a big red cat and a small blue dog under a green tree in the sunny garden"


def test_long_prompts_are_cut_refused_or_read_in_turns() -> None:
    encoder = small_text_encoder(max_tokens=8)
    ids = encoder.tokenizer.ids(LONG)
    with pytest.warns(UserWarning, match="may have 8 tokens"):
        cut = encode_weighted(encoder, [(LONG, 1.0)])
    with pytest.warns(UserWarning, match="may have 8 tokens"):
        leaned = encode_weighted(encoder, [(LONG, 1.5)])
    assert cut.mask.shape == leaned.mask.shape == (1, 8)
    with pytest.raises(InputError, match=f"8 tokens, got {len(ids)}"):
        encode_weighted(encoder, [(LONG, 1.0)], long_prompts="refuse")
    turns = encode_weighted(encoder, [(LONG, 1.0)], long_prompts="chunk")
    stretches = windows(encoder.tokenizer, ids, 8)
    assert turns.mask.shape == (1, len(ids) - 1 + len(stretches))
    begin, end = stretches[1]
    alone = torch.tensor([[*ids[begin:end], END]])
    first = stretches[0][1] + 1
    row = turns.embeddings[:, first : first + alone.shape[1]]
    expected = encoder.encoder(alone, alone != PAD)
    assert (row - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("choice", ["refuse", "chunk"])
def test_a_prompt_that_fits_is_left_alone(choice: str) -> None:
    encoder = small_text_encoder()
    found = encode_weighted(encoder, [(LONG, 1.0)], long_prompts=choice)  # type: ignore[arg-type]
    assert torch.equal(found.embeddings, encoder.encode([LONG]).embeddings)


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1), st.integers(2, 9))
def test_turns_cover_the_prompt(text: str, limit: int) -> None:
    ids = TOKENIZER.ids(text)
    found = windows(TOKENIZER, ids, limit)
    assert [i for begin, end in found for i in range(begin, end)] == list(range(len(ids) - 1))
    assert all(0 < end - begin < limit for begin, end in found)


def test_turns_keep_words_whole() -> None:
    ids = TOKENIZER.ids(LONG)
    for begin, _ in windows(TOKENIZER, ids, 12):
        assert TOKENIZER.pieces.begins_word(ids[begin])
