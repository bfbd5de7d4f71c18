"""Rows to shards: latents as mean and deviation, captions as the states of T5."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pixsigma.buckets import asked_multiple
from pixsigma.data.manifest import Row, read_bytes
from pixsigma.data.official import read_moments, read_states
from pixsigma.data.transforms import (
    PictureError,
    cover_and_crop,
    mask_of,
    open_picture,
    to_array,
)
from pixsigma.datatools.workers import Workers
from pixsigma.errors import InputError, MismatchError, NotFiniteError
from pixsigma.hints import MADE, PICTURE
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.text import T5TextEncoder
from pixsigma.weights.files import save_tensors

TEXT_TO_PICTURES = 4  # captions are short beside pictures: this many more in a batch


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file to write: some rows of one bucket."""

    name: str
    height: int
    width: int
    rows: tuple[Row, ...]
    fine: bool = False
    """Whether pictures are scaled with LANCZOS, as the authors do for large ones."""
    masked: bool = False
    """Whether any picture of the data has a mask, so that all need one."""
    hints: str | None = None
    """What kind of hints the pictures get."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The networks that encode, and how."""

    text: T5TextEncoder
    autoencoder: KLAutoencoder
    max_tokens: int
    device: torch.device
    batch_size: int = 8

    @property
    def multiple(self) -> int:
        """What sides in pixels must be multiples of, where a patch is two latents."""
        return asked_multiple(2 * self.autoencoder.config.factor)

    def latents(self, pictures: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Mean and deviation (B, C, H, W) as the transformer sees latents."""
        pixels = torch.from_numpy(np.stack(pictures)).to(self.device)
        images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.scaled(*self.autoencoder.moments(images))

    def scaled(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the autoencoder, shifted and scaled."""
        config = self.autoencoder.config
        return (mean - (config.shift_factor or 0.0)) * config.scaling_factor, (
            std * config.scaling_factor
        )

    def states(self, captions: Sequence[str]) -> tuple[list[Tensor], int]:
        """The states (L, E) of each caption without padding, and how many were cut off."""
        # alike lengths side by side, so that little padding is computed
        order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
        found: dict[int, Tensor] = {}
        size = TEXT_TO_PICTURES * self.batch_size
        with warnings.catch_warnings(record=True) as cut:
            warnings.simplefilter("always")
            for first in range(0, len(order), size):
                chosen = order[first : first + size]
                features = self.text.encode(
                    [captions[i] for i in chosen], max_length=self.max_tokens, device=self.device
                )
                for i, row, mask in zip(chosen, features.embeddings, features.mask, strict=True):
                    found[i] = row[mask].half().cpu()
        return [found[i] for i in range(len(captions))], len(cut)

    def null(self) -> dict[str, Tensor]:
        """The empty caption, padded to the full length as the authors keep it."""
        features = self.text.encode(
            [""], max_length=self.max_tokens, pad_to_max_length=True, device=self.device
        )
        return {
            "null_text": features.embeddings.half().cpu(),
            "null_mask": features.mask.cpu(),
        }


@torch.no_grad()
def encode_shards(
    shards: Sequence[Shard], folder: Path, plan: str, encoders: Encoders, workers: Workers
) -> Iterator[int]:
    """Write every shard, whole or not at all; yield the number of pictures after each batch.

    `plan` is written into each, so that shards of other settings are told apart. Raises
    InputError where a picture changed since it was looked at, NotFiniteError, OutputError.
    """
    pixels = workers.map(_load, ((s.height, s.width, s.fine, r) for s in shards for r in s.rows))
    for shard in shards:
        means, stds, hints = [], [], []
        for batch in _batched(shard.rows, encoders.batch_size):
            loaded = list(itertools.islice(pixels, len(batch)))
            mean, std = _moments(shard, batch, loaded, encoders)
            if shard.hints is not None:
                seen = [hint_of(shard, *each) for each in zip(batch, loaded, strict=True)]
                hints.append(encoders.latents(seen)[0].half().cpu())
            means.append(mean.half().cpu())
            stds.append(std.half().cpu())
            yield len(batch)
        tensors, cut = caption_tensors(shard.rows, partial(_states, shard.rows, encoders))
        tensors |= {"mean": torch.cat(means), "std": torch.cat(stds)}
        if hints:
            tensors["hint"] = torch.cat(hints)
        if shard.masked:
            tensors["picture_mask"] = masks_of(shard, encoders.autoencoder.config.factor)
        refuse_nan(tensors, shard.name)
        told = {"plan": plan, "cut": str(cut)}
        save_tensors(tensors, folder / shard.name, metadata=told)


def caption_tensors(
    rows: Sequence[Row], encode: Callable[[list[str]], tuple[list[Tensor], int]]
) -> tuple[dict[str, Tensor], int]:
    """The captions of a shard: each text once, and which texts each picture has."""
    texts = sorted({caption.text for row in rows for caption in row.captions})
    place = {text: number for number, text in enumerate(texts)}
    states, cut = encode(texts)
    widest = max(len(row.captions) for row in rows)
    table = torch.full((len(rows), widest), -1)
    long = torch.zeros(len(rows), widest, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, caption in enumerate(row.captions):
            table[i, j], long[i, j] = place[caption.text], caption.kind == "long"
    offsets = torch.tensor([0, *map(len, states)]).cumsum(0)
    return {
        "text": torch.cat(states),
        "text_offsets": offsets,
        "captions": table,
        "caption_long": long,
    }, cut


def masks_of(shard: Shard, factor: int) -> Tensor:
    """(m, 1, H, W) in half precision; ones for a picture without. Raises InputError."""
    size = shard.height, shard.width
    found = []
    for row in shard.rows:
        if not row.mask:
            found.append(torch.ones(1, size[0] // factor, size[1] // factor))
            continue
        try:
            image = open_picture(Path(row.mask).read_bytes())
        except (OSError, PictureError) as error:
            raise InputError(f"the mask {row.mask} cannot be read: {error}") from error
        found.append(torch.from_numpy(mask_of(image, *size, factor, fine=shard.fine)))
    return torch.stack(found).half()


def hint_of(shard: Shard, row: Row, pixels: Any) -> NDArray[np.uint8]:
    """The hint of a picture, cut as the picture is: made of its pixels (height, width, 3), or from
    the file beside it; an image prompt is the picture itself where there is none.

    Raises InputError where there is none.
    """
    kind = shard.hints or ""
    if kind in MADE:
        return np.asarray(MADE[kind](Image.fromarray(pixels)))
    path = Path(row.path).with_suffix(f".{kind}.png")
    if kind == PICTURE and (row.member or not path.exists()):
        return np.asarray(pixels)
    try:
        if row.member:
            raise FileNotFoundError("pictures in tar files have no files beside them")
        image = open_picture(path.read_bytes())
    except (OSError, PictureError) as error:
        raise InputError(f"the hint {path} of {row.name} cannot be read: {error}") from error
    return to_array(cover_and_crop(image, shard.height, shard.width, fine=shard.fine))


def refuse_nan(tensors: dict[str, Tensor], name: str) -> None:
    """Raise NotFiniteError where something overflowed, in the network or in half precision."""
    for key in {"mean", "std", "text", "hint"} & tensors.keys():
        if not bool(tensors[key].isfinite().all()):
            raise NotFiniteError(
                f"{key} of {name} holds NaN or infinity; encode with --dtype fp32, and look at "
                "the pictures of this shard in rows.jsonl"
            )


def _load(item: tuple[int, int, bool, Row]) -> NDArray[np.uint8] | None:
    """Pixels (height, width, 3), in a worker; None for a row that has its latents already."""
    height, width, fine, row = item
    if row.features:
        return None
    try:
        image = open_picture(read_bytes(row))
    except (OSError, PictureError) as error:
        raise InputError(
            f"{row.name} changed since it was looked at: {error}; prepare into a new folder"
        ) from error
    return to_array(cover_and_crop(image, height, width, fine=fine))


def _moments(
    shard: Shard, rows: Sequence[Row], loaded: Sequence[Any], encoders: Encoders
) -> tuple[Tensor, Tensor]:
    if not rows[0].features:
        return encoders.latents(loaded)
    config = encoders.autoencoder.config
    wanted = (config.latent_channels, shard.height // config.factor, shard.width // config.factor)
    moments = [read_moments(row.features[0]) for row in rows]
    for row, (mean, _) in zip(rows, moments, strict=True):
        if tuple(mean.shape) != wanted:
            raise MismatchError(
                f"{row.features[0]} holds latents {tuple(mean.shape)}, the model's autoencoder "
                f"makes {wanted}"
            )
    mean, std = map(torch.stack, zip(*moments, strict=True))
    return encoders.scaled(mean, std)


def _states(rows: Sequence[Row], encoders: Encoders, texts: list[str]) -> tuple[list[Tensor], int]:
    """From the text encoder, or from the authors' files."""
    if not rows[0].features:
        return encoders.states(texts)
    files: dict[str, str] = {}
    for row in rows:
        files |= dict(
            zip((caption.text for caption in row.captions), row.features[1:], strict=True)
        )
    width = encoders.text.encoder.config.d_model
    states = [read_states(files[text], encoders.max_tokens) for text in texts]
    for text, state in zip(texts, states, strict=True):
        if state.shape[1] != width:
            raise MismatchError(
                f"{files[text]} holds features of width {state.shape[1]}, the model's text "
                f"encoder makes {width}"
            )
    return [state.half() for state in states], 0


def _batched(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
