"""Classifier-free guidance (Ho & Salimans 2022): a network and two texts become one `Predict`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pixsigma.diffusion.prediction import Prediction, predicted
from pixsigma.diffusion.samplers.base import Predict
from pixsigma.diffusion.schedule import Level
from pixsigma.errors import InputError
from pixsigma.interfaces import Denoiser, TextFeatures
from pixsigma.shapes import Latents


def guided(
    denoiser: Denoiser,
    text: TextFeatures,
    null: TextFeatures | None,
    scale: float,
    *,
    prediction_type: str = "epsilon",
    channels: int | None = None,
) -> Predict:
    """The denoiser at `uncond + scale (cond - uncond)`, both in one batch, unconditional first.

    `text` and `null` have a row a picture, or one row for all. At scale 1, or without `null`, the
    network sees the conditional half alone. The network computes in the dtype of the text, the
    guidance in that of `x`. `channels=3` guides only the first three channels, as the IDDPM sampler
    of PixArt did by inheritance from DiT; the others stay conditional. The variance fraction is
    always the conditional one.
    """
    parts = [text] if scale == 1 or null is None else [null, text]
    if len({len(part.mask) for part in parts} - {1}) > 1:
        check_rows(len(parts[0].mask), len(text.mask))

    def predict(x: Latents, level: Level) -> Prediction:
        output = asked(denoiser, x, level, parts)
        if len(parts) == 2:
            output = _combined(output, scale, channels or x.shape[1], x.shape[1])
        return predicted(output, x, level, prediction_type)

    return predict


def asked(
    denoiser: Callable[..., Tensor],
    x: Latents,
    level: Level,
    texts: Sequence[TextFeatures],
    **extra: Any,
) -> Tensor:
    """Every picture of `x` under each of the texts, in one batch, text by text; dtype of `x`.

    Denoisers that remember what they read have an `answer`, and get the texts as they are.
    """
    if hasattr(denoiser, "answer"):
        answer: Tensor = denoiser.answer(x, level.timestep, texts, **extra)
        return answer.to(x.dtype)
    rows = stacked(texts, len(x))
    inputs = x if len(texts) == 1 else torch.cat([x] * len(texts))
    t = torch.full((len(inputs),), level.timestep, dtype=torch.float32, device=x.device)
    inputs = inputs.to(rows.embeddings.dtype)
    return denoiser(inputs, t, rows.embeddings, rows.mask, **extra).to(x.dtype)


def _combined(output: Tensor, scale: float, guided_channels: int, channels: int) -> Tensor:
    uncond, cond = output.chunk(2)
    end = min(guided_channels, channels)
    mixed = uncond[:, :end] + scale * (cond[:, :end] - uncond[:, :end])
    return torch.cat([mixed, cond[:, end:]], dim=1)


def stacked(texts: Sequence[TextFeatures], num_pictures: int) -> TextFeatures:
    """The texts under one another, a row for each picture, padded to a common length."""
    length = max(text.mask.shape[1] for text in texts)
    rows = [padded(rows_for(text, num_pictures), length) for text in texts]
    dtype = texts[-1].embeddings.dtype
    return TextFeatures(
        torch.cat([row.embeddings.to(dtype) for row in rows]),
        torch.cat([row.mask for row in rows]),
    )


def padded(text: TextFeatures, length: int) -> TextFeatures:
    """Features (B, length, E); the columns that are added are masked."""
    extra = length - text.mask.shape[1]
    return TextFeatures(
        torch.nn.functional.pad(text.embeddings, (0, 0, 0, extra)),
        torch.nn.functional.pad(text.mask, (0, extra)),
    )


def rows_for(text: TextFeatures, num_pictures: int) -> TextFeatures:
    """A row for each picture, a single one repeated."""
    check_rows(len(text.mask), num_pictures)
    return text if len(text.mask) == num_pictures else text.repeat_interleave(num_pictures)


def check_rows(num_rows: int, num_pictures: int) -> None:
    """Raise InputError unless there is a row of text a picture, or one for all."""
    if num_rows not in (1, num_pictures):
        raise InputError(
            f"guidance needs one row of text a picture, or one for all: "
            f"got {num_rows} rows for {num_pictures} pictures"
        )
