"""Prompts to ids to features: the tokenizer of T5 and the encoder behind it."""

import re
import warnings
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixsigma.errors import InputError, MissingWeightsError
from pixsigma.interfaces import TextFeatures
from pixsigma.models.pieces import END, PAD, open_pieces

_ENDINGS = "", "s", "es"


def words_in(text: str) -> list[str]:
    """The words of a text in lower case, in their order: runs of letters."""
    return re.findall(r"[^\W\d_]+", text.lower())


class Tokenizer:
    """Sentencepiece with what T5 adds: an end token, padding, sentinels written out in the text."""

    def __init__(self, path: Path | str, max_length: int = 300) -> None:
        """Read `spiece.model`, or the `tokenizer.json` that transformers 5 writes in its place.

        `max_length` counts the end token (300 for Σ, 120 for α). Raises MissingWeightsError where
        there is no such file, InputError for a length below 1.
        """
        if max_length < 1:
            raise InputError(f"max_length must leave room for the end token, got {max_length}")
        if not Path(path).is_file():
            raise MissingWeightsError(
                f"the tokenizer needs a sentencepiece file, there is none at {path}; "
                "a T5 folder has it as tokenizer/spiece.model or tokenizer/tokenizer.json"
            )
        self.max_length = max_length
        self.pieces = open_pieces(Path(path))

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        max_length: int | None = None,
        pad_to_max_length: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Ids, int64, and mask, bool, both (B, L), padded to the longest prompt or `max_length`.

        Warns with the text that was cut off where a prompt is longer than `max_length`.
        """
        limit = max_length or self.max_length
        # map, as the frame of a comprehension would make the warning point here.
        rows = list(map(self._cut, map(self.ids, prompts), repeat(limit)))
        length = limit if pad_to_max_length else max(map(len, rows), default=1)
        ids = torch.full((len(rows), length), PAD, dtype=torch.int64)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask

    def ids(self, prompt: str) -> list[int]:
        """The ids of one prompt, end token included, at any length."""
        return [*self.pieces.encode(prompt), END]

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self.pieces.decode(ids)

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        if len(ids) <= limit:
            return ids
        kept, lost = ids[: limit - 1], ids[limit - 1 : -1]
        warnings.warn(
            f"a prompt may have {limit} tokens and this one has {len(ids)}: "
            f"the model does not see {self.text(lost)!r}",
            stacklevel=3,
        )
        return [*kept, END]


class T5TextEncoder:
    """Tokenizer and encoder as one `TextEncoder`."""

    def __init__(
        self, tokenizer: Tokenizer, encoder: Any, words: frozenset[str] | None = None
    ) -> None:
        """`encoder` is a T5Encoder, or a module that answers as one: streamed, cached.

        `words` are those of all captions that the model was shown, where they are few and told.
        """
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.words = words

    def unread(self, prompt: str) -> list[str]:
        """Words of three letters and more that no caption had, in the singular or at all."""
        if (known := self.words) is None:
            return []
        found = dict.fromkeys(word for word in words_in(prompt) if len(word) >= 3)
        return [w for w in found if not any(w.removesuffix(end) in known for end in _ENDINGS)]

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str],
        *,
        max_length: int | None = None,
        pad_to_max_length: bool = False,
        device: torch.device | None = None,
    ) -> TextFeatures:
        """One row a prompt, (B, L, E), computed on `device` (the encoder's where not given).

        Padding only to the longest prompt gives the rows of real tokens the same values as padding
        to `max_length`, as padding is masked; the native pipeline of Σ also reads padded rows of
        the empty prompt, which is what `pad_to_max_length` is for.
        """
        ids, mask = self.tokenizer(
            prompts, max_length=max_length, pad_to_max_length=pad_to_max_length
        )
        device = device or self.encoder.device
        ids, mask = ids.to(device), mask.to(device)
        return TextFeatures(self.encoder(ids, mask), mask)
