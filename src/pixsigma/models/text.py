"""Prompts to ids to features: the tokenizer of T5 and the encoder behind it."""

import re
import warnings
from collections.abc import Sequence
from itertools import accumulate, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pixsigma.errors import InputError, MissingWeightsError
from pixsigma.interfaces import TextFeatures
from pixsigma.models.t5 import T5Encoder

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

PAD, END, UNKNOWN = 0, 1, 2
"""Ids that T5's vocabulary begins with."""

NUM_SENTINELS = 100
"""`<extra_id_0>` to `<extra_id_99>` follow the pieces, the last one first."""

_SPECIAL = re.compile(r"(<pad>|</s>|<unk>|<extra_id_(?:\d|[1-9]\d)>)")


class Tokenizer:
    """Sentencepiece with what T5 adds: an end token, padding, sentinels written out in the text."""

    def __init__(self, path: Path | str, max_length: int = 300) -> None:
        """Read `spiece.model`, or the `tokenizer.json` that transformers 5 writes in its place.

        `max_length` counts the end token (300 for Σ, 120 for α).

        Raises MissingWeightsError where there is no such file, InputError for a length below 1.
        """
        if max_length < 1:
            raise InputError(f"max_length must leave room for the end token, got {max_length}")
        if not Path(path).is_file():
            raise MissingWeightsError(
                f"the tokenizer needs a sentencepiece file, there is none at {path}; "
                "a T5 folder has it as tokenizer/spiece.model or tokenizer/tokenizer.json"
            )
        self.max_length = max_length
        self._pieces = _open(Path(path))

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
        # A special token written out in the text is that token, as in the reference tokenizer;
        # each stretch between two of them is tokenized as if it stood alone.
        parts = _SPECIAL.split(prompt)
        found: list[int] = []
        for text, special in zip(parts[::2], [*parts[1::2], ""], strict=True):
            found += self._pieces.encode(text)
            found += [self._special_id(special)] if special else []
        return [*found, END]

    def ends(self, prompt: str) -> list[int]:
        """For each id of a prompt but the end token, where in the prompt its characters end."""
        found: list[int] = []
        done = 0
        for k, part in enumerate(_SPECIAL.split(prompt)):
            if k % 2:
                found.append(done + len(part))
            elif part:
                # characters of the normalized text, of which pieces are made, back to the prompt
                _, places = self._pieces.normalize(part, with_offsets=True)
                sizes = accumulate(map(len, self._pieces.encode(part, out_type=str)))
                found += [done + places[size] for size in sizes]
            done += len(part)
        return found

    def begins_word(self, token: int) -> bool:
        """Whether a space stands before this id's characters."""
        inside = token < self._pieces.vocab_size()
        return not inside or bool(self._pieces.id_to_piece(token).startswith("\u2581"))

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        size = self._pieces.vocab_size()
        decoded: str = self._pieces.decode([i for i in ids if UNKNOWN < i < size])
        return decoded

    def serialized(self) -> bytes:
        """The sentencepiece file, `spiece.model`, as it was read."""
        content: bytes = self._pieces.serialized_model_proto()
        return content

    def _special_id(self, token: str) -> int:
        fixed = {"<pad>": PAD, "</s>": END, "<unk>": UNKNOWN}
        if token in fixed:
            return fixed[token]
        number = int(token.removeprefix("<extra_id_").removesuffix(">"))
        return int(self._pieces.vocab_size()) + NUM_SENTINELS - 1 - number

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

    def __init__(self, tokenizer: Tokenizer, encoder: T5Encoder) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder

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
        device = device or self.encoder.embed.weight.device
        ids, mask = ids.to(device), mask.to(device)
        return TextFeatures(self.encoder(ids, mask), mask)


def _open(path: Path) -> "SentencePieceProcessor":
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(path))
