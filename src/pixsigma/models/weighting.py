"""Prompts whose words have weights, and prompts that are longer than the model's limit."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pixsigma.errors import InputError
from pixsigma.interfaces import TextFeatures
from pixsigma.models.pieces import END, PAD
from pixsigma.models.text import T5TextEncoder, Tokenizer

LongPrompts: TypeAlias = Literal["truncate", "chunk", "refuse"]
"""What happens to tokens beyond the limit: cut with a warning, encoded in turns, an error."""


@torch.no_grad()
def encode_weighted(
    encoder: T5TextEncoder,
    spans: Sequence[tuple[str, float]],
    *,
    max_length: int | None = None,
    long_prompts: LongPrompts = "truncate",
    device: torch.device | None = None,
) -> TextFeatures:
    """Features (1, L, E) of one text in stretches, each with the weight of its words.

    A token of weight w becomes `null + w (token - null)`, null being the token at the same place of
    the empty prompt padded to the same length. Weight 1 leaves it as it is, to the last bit. The
    text is tokenized whole, and a token has the weight of its last character.

    Raises InputError for a prompt over `max_length` tokens where those are refused.
    """
    tokenizer = encoder.tokenizer
    limit = max_length or tokenizer.max_length
    text = "".join(words for words, _ in spans)
    ids = tokenizer.ids(text)
    weighted = any(weight != 1 for _, weight in spans)
    weights = token_weights(tokenizer, spans) if weighted else [1.0] * len(ids)
    if long_prompts == "refuse" and len(ids) > limit:
        raise InputError(
            f"a prompt may have {limit} tokens, got {len(ids)}: shorten it, "
            "or have it cut (truncate) or read in turns (chunk)"
        )
    if len(ids) <= limit or long_prompts == "truncate":
        features = encoder.encode([text], max_length=limit, device=device)
        kept = features.mask.shape[1]
        weights = weights if kept == len(weights) else [*weights[: kept - 1], 1.0]
        return _leaned(encoder, features, weights)
    parts = []
    for begin, end in windows(tokenizer, ids, limit):
        part = _encoded(encoder, [*ids[begin:end], END], device)
        parts.append(_leaned(encoder, part, [*weights[begin:end], 1.0]))
    return TextFeatures(
        torch.cat([part.embeddings for part in parts], dim=1),
        torch.cat([part.mask for part in parts], dim=1),
    )


def token_weights(tokenizer: Tokenizer, spans: Sequence[tuple[str, float]]) -> list[float]:
    """The weight of each of the text's ids: that of the token's last character; 1 for the end."""
    ends = list(accumulate(len(words) for words, _ in spans))
    found, span = [], 0
    for end in tokenizer.pieces.ends("".join(words for words, _ in spans)):
        while span < len(spans) - 1 and end > ends[span]:
            span += 1
        found.append(spans[span][1])
    return [*found, 1.0]


def windows(tokenizer: Tokenizer, ids: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Stretches of `ids`, without the end token, that leave room for one; words stay whole."""
    if limit < 2:
        raise InputError(f"a prompt read in turns needs room for a token and its end, got {limit}")
    found, begin, last = [], 0, len(ids) - 1
    while begin < last:
        end = min(begin + limit - 1, last)
        while end < last and end > begin and not tokenizer.pieces.begins_word(ids[end]):
            end -= 1
        # a word longer than the limit is cut where it must be
        end = end if end > begin else min(begin + limit - 1, last)
        found.append((begin, end))
        begin = end
    return found


def _leaned(
    encoder: T5TextEncoder, features: TextFeatures, weights: Sequence[float]
) -> TextFeatures:
    if all(weight == 1 for weight in weights):
        return features
    embeddings = features.embeddings
    length = embeddings.shape[1]
    null = _encoded(encoder, [END] + [PAD] * (length - 1), embeddings.device).embeddings
    scale = torch.tensor(weights, dtype=embeddings.dtype, device=embeddings.device)[:, None]
    # where, as null + 1 (token - null) is not the token to the last bit
    leaned = torch.where(scale == 1, embeddings, null + scale * (embeddings - null))
    return TextFeatures(leaned, features.mask)


def _encoded(
    encoder: T5TextEncoder, ids: Sequence[int], device: torch.device | None
) -> TextFeatures:
    rows: Tensor = torch.tensor([list(ids)], device=device or encoder.encoder.device)
    mask = rows != PAD
    return TextFeatures(encoder.encoder(rows, mask), mask)
