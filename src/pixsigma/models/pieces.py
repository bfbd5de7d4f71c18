"""Text to pieces of words: the two files that hold T5's vocabulary, behind one interface."""

import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from pixsigma.errors import CorruptWeightsError

PAD, END, UNKNOWN = 0, 1, 2
"""Ids that T5's vocabulary begins with."""

NUM_SENTINELS = 100
"""`<extra_id_0>` to `<extra_id_99>` follow the pieces, the last one first."""

_SPACE = "\u2581"
"""What stands for a space in a piece."""

_SPECIAL = re.compile(r"(<pad>|</s>|<unk>|<extra_id_(?:\d|[1-9]\d)>)")


class Pieces(Protocol):
    """A vocabulary that cuts text into ids, without an end token."""

    file_name: str
    """What the file is called in a tokenizer folder."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length; special tokens written out in it count as such."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        ...

    def ends(self, text: str) -> list[int]:
        """For each id of a text, where in the text its characters end."""
        ...

    def begins_word(self, token: int) -> bool:
        """Whether a space stands before this id's characters."""
        ...

    def content(self) -> bytes:
        """The file as it was read."""
        ...


class SentencePieces:
    """`spiece.model`, as the published folders have it."""

    file_name = "spiece.model"

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor(model_file=str(path))

    def encode(self, text: str) -> list[int]:
        """The ids; each stretch between two special tokens is cut as if it stood alone."""
        parts = _SPECIAL.split(text)
        found: list[int] = []
        for words, special in zip(parts[::2], [*parts[1::2], ""], strict=True):
            found += self._model.encode(words)
            found += [self._special_id(special)] if special else []
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        size = self._model.vocab_size()
        decoded: str = self._model.decode([i for i in ids if UNKNOWN < i < size])
        return decoded

    def ends(self, text: str) -> list[int]:
        """For each id of a text, where in the text its characters end."""
        found: list[int] = []
        done = 0
        for k, part in enumerate(_SPECIAL.split(text)):
            if k % 2:
                found.append(done + len(part))
            elif part:
                # characters of the normalized text, of which pieces are made, back to the text
                _, places = self._model.normalize(part, with_offsets=True)
                sizes = accumulate(map(len, self._model.encode(part, out_type=str)))
                found += [done + places[size] for size in sizes]
            done += len(part)
        return found

    def begins_word(self, token: int) -> bool:
        """Whether a space stands before this id's characters."""
        inside = token < self._model.vocab_size()
        return not inside or bool(self._model.id_to_piece(token).startswith(_SPACE))

    def content(self) -> bytes:
        """The file as it was read."""
        serialized: bytes = self._model.serialized_model_proto()
        return serialized

    def _special_id(self, token: str) -> int:
        fixed = {"<pad>": PAD, "</s>": END, "<unk>": UNKNOWN}
        if token in fixed:
            return fixed[token]
        number = int(token.removeprefix("<extra_id_").removesuffix(">"))
        return int(self._model.vocab_size()) + NUM_SENTINELS - 1 - number


class JsonPieces:
    """`tokenizer.json`, the only vocabulary that transformers 5 writes."""

    file_name = "tokenizer.json"

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._bytes = path.read_bytes()
        self._model = Tokenizer.from_buffer(self._bytes)
        # A file may ask to pad or cut; length is the caller's business here.
        self._model.no_padding()
        self._model.no_truncation()

    def encode(self, text: str) -> list[int]:
        """The ids, special tokens told by the file itself."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        text: str = self._model.decode(list(ids), skip_special_tokens=True)
        return text

    def ends(self, text: str) -> list[int]:
        """For each id of a text, where in the text its characters end."""
        return [end for _, end in self._model.encode(text, add_special_tokens=False).offsets]

    def begins_word(self, token: int) -> bool:
        """Whether a space stands before this id's characters."""
        piece = self._model.id_to_token(token)
        if piece is None or _SPECIAL.fullmatch(piece):
            return True
        return bool(piece.startswith(_SPACE))

    def content(self) -> bytes:
        """The file as it was read."""
        return self._bytes


def open_pieces(path: Path) -> Pieces:
    """The vocabulary in a file, by its ending; raises CorruptWeightsError where it is none."""
    try:
        return JsonPieces(path) if path.suffix == ".json" else SentencePieces(path)
    except Exception as error:  # the libraries have no class of their own for it
        reason = str(error).strip().split("\n")[0][:200]
        raise CorruptWeightsError(
            f"{path} is no tokenizer ({reason}); is it whole, and not a pointer of git-lfs? "
            "fetch it again"
        ) from error
