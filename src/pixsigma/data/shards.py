"""What `pixsigma prepare` wrote, read back: a folder of shards, mapped into memory."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pixsigma.data.features import Batch, Features, FeatureSet
from pixsigma.errors import CorruptWeightsError, MismatchError, MissingWeightsError
from pixsigma.interfaces import TextFeatures

FORMAT = 1
INDEX, NULL = "index.json", "null.safetensors"
"""Names inside the folder."""

_OPEN_SHARDS = 256  # a map costs address space, and Linux allows 65,530 of them


def open_features(path: Path, *, long_captions: float | None = None) -> Features:
    """A prepared folder, or one file of features; raises MissingWeightsError or MismatchError.

    `long_captions` is the share of long captions where a picture has both kinds.
    """
    if path.is_dir():
        return ShardedFeatures(path, long_captions=long_captions)
    if long_captions is not None and path.is_file():
        raise MismatchError(
            f"{path} does not know which captions are long; leave out long_captions, or prepare "
            "the pictures into a folder"
        )
    return FeatureSet.load(path)


class ShardedFeatures:
    """M pictures in buckets, on disk; a batch reads only its own rows.

    A shard holds pictures of one bucket: `mean` and `std` (m, C, H, W), scaled as the transformer
    sees latents; `text` (T, E), the tokens of all its captions one behind the other, and
    `text_offsets` (K + 1,), where each begins; `captions` (m, Q), the captions of each picture, -1
    where it has fewer than Q; `caption_long` (m, Q), bool; and, where the data has masks,
    `picture_mask` (m, 1, H, W) in half precision; and, where it was prepared with hints, `hint`
    (m, C, H, W), their latents. `null.safetensors` holds the empty
    caption, `null_text` (1, L, E) and `null_mask` (1, L).
    """

    def __init__(self, folder: Path, *, long_captions: float | None = None) -> None:
        """Read the index; raises MissingWeightsError, CorruptWeightsError or MismatchError."""
        self.folder, self.long_captions = folder, long_captions
        self.index = read_index(folder)
        shards = self.index["shards"]
        sizes = sorted({(shard["height"], shard["width"]) for shard in shards})
        channels, factor = self.index["channels"], self.index["factor"]
        self.latent_shapes = [(channels, h // factor, w // factor) for h, w in sizes]
        self.text_width: int = self.index["text_width"]
        counts = torch.tensor([shard["rows"] for shard in shards])
        self.ends = counts.cumsum(0)
        buckets = torch.tensor([sizes.index((s["height"], s["width"])) for s in shards])
        self.bucket_of = buckets.repeat_interleave(counts)
        self.masked = bool(self.index.get("masked"))
        self.hint_kind: str | None = self.index.get("hints")
        null = _read(folder / NULL)
        self.null_text, self.null_mask = null["null_text"].float(), null["null_mask"]
        # one map a shard, opened when first read
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def batch(self, rows: Tensor, drop_caption: float, rng: torch.Generator) -> Batch:
        """Draw latents and one caption for each of `rows`, all of one bucket.

        Some captions become the empty one, with its own mask.
        """
        if self.bucket_of[rows].unique().numel() > 1:
            raise MismatchError("a batch holds pictures of one size: draw its rows by bucket")
        places = [self._place(row) for row in rows.tolist()]
        mean, std = _stacked(places, "mean"), _stacked(places, "std")
        latents = mean + std * torch.randn(mean.shape, generator=rng)
        draws = torch.rand(len(rows), 2, generator=rng).tolist()
        dropped = (torch.rand(len(rows), generator=rng) < drop_caption).tolist()
        texts = [
            self.null_text[0][self.null_mask[0]]
            if drop
            else _caption(shard, self._pick(shard, i, *draw))
            for (shard, i), draw, drop in zip(places, draws, dropped, strict=True)
        ]
        mask = hint = None
        if self.masked:
            mask = _stacked(places, "picture_mask")
        if self.hint_kind is not None:
            hint = _stacked(places, "hint")
        return Batch(latents, padded(texts), mask, hint)

    def _pick(self, shard: dict[str, Tensor], row: int, which: float, kind: float) -> int:
        """One of a picture's captions by two draws in [0, 1): the kind, then which of them."""
        captions, long = shard["captions"][row], shard["caption_long"][row]
        there = captions >= 0
        wanted = there
        if self.long_captions is not None:
            wanted = there & (long == (kind < self.long_captions))
            wanted = wanted if wanted.any() else there
        choice = captions[wanted]
        return int(choice[int(which * len(choice))])

    def _place(self, row: int) -> tuple[dict[str, Tensor], int]:
        number = int(torch.searchsorted(self.ends, row, right=True))
        before = int(self.ends[number - 1]) if number else 0
        return self._shard(number), row - before

    def _open(self, number: int) -> dict[str, Tensor]:
        told = self.index["shards"][number]
        shard = _read(self.folder / told["file"])
        factor = self.index["factor"]
        latents = (told["rows"], self.index["channels"], told["height"] // factor)
        shape = (*latents, told["width"] // factor)
        text_width = shard["text"].shape[-1]
        if tuple(shard["mean"].shape) != shape or text_width != self.text_width:
            raise MismatchError(
                f"{self.folder / told['file']} should hold latents {shape} and text of width "
                f"{self.text_width}, got {tuple(shard['mean'].shape)} and {text_width}; "
                "prepare the data again into an empty folder"
            )
        return shard


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a prepared folder; raises MissingWeightsError or CorruptWeightsError."""
    path = folder / INDEX
    if not path.is_file():
        raise MissingWeightsError(
            f"there is no {INDEX} in {folder}: run `pixsigma prepare` to its end"
        )
    try:
        index: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CorruptWeightsError(f"{path} is damaged: {error}; run prepare again") from error
    if index.get("format") != FORMAT or not index.get("shards"):
        raise CorruptWeightsError(f"{path} is not of format {FORMAT}, or lists no shards")
    for shard in index["shards"]:
        if not (folder / shard["file"]).is_file():
            raise MissingWeightsError(
                f"{folder / shard['file']} is listed and not there: run prepare again"
            )
    return index


def padded(texts: list[Tensor]) -> TextFeatures:
    """Captions (L, E) of several lengths as one batch, zeros behind the shorter ones."""
    embeddings = torch.nn.utils.rnn.pad_sequence([text.float() for text in texts], True)
    lengths = torch.tensor([len(text) for text in texts])
    return TextFeatures(embeddings, torch.arange(embeddings.shape[1]) < lengths[:, None])


def _stacked(places: Sequence[tuple[dict[str, Tensor], int]], key: str) -> Tensor:
    """In float32 before they are joined, since autocast to bf16 joins no float16."""
    return torch.stack([shard[key][i].float() for shard, i in places])


def _caption(shard: dict[str, Tensor], number: int) -> Tensor:
    first, last = shard["text_offsets"][number : number + 2].tolist()
    return shard["text"][first:last]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptWeightsError(
            f"{path} cannot be read: {error}; delete it and run prepare again"
        ) from error
