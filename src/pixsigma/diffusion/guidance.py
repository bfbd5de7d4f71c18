"""Classifier-free guidance (Ho & Salimans 2022): a network and two texts become one `Predict`."""

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
    both = text if scale == 1 or null is None else _stacked(null, text)

    def predict(x: Latents, level: Level) -> Prediction:
        rows = rows_for(both, len(x), halves=1 if both is text else 2)
        inputs = x if both is text else torch.cat([x, x])
        t = torch.full((len(inputs),), level.timestep, dtype=torch.float32, device=x.device)
        output = denoiser(inputs.to(rows.embeddings.dtype), t, rows.embeddings, rows.mask)
        output = output.to(x.dtype)
        if both is not text:
            output = _combined(output, scale, channels or x.shape[1], x.shape[1])
        return predicted(output, x, level, prediction_type)

    return predict


def _combined(output: Tensor, scale: float, guided_channels: int, channels: int) -> Tensor:
    uncond, cond = output.chunk(2)
    end = min(guided_channels, channels)
    mixed = uncond[:, :end] + scale * (cond[:, :end] - uncond[:, :end])
    return torch.cat([mixed, cond[:, end:]], dim=1)


def _stacked(null: TextFeatures, text: TextFeatures) -> TextFeatures:
    """[null, text] padded to a common length."""
    rows = max(len(null.mask), len(text.mask))
    length = max(null.mask.shape[1], text.mask.shape[1])
    parts = [padded(rows_for(part, rows), length) for part in (null, text)]
    return TextFeatures(
        torch.cat([part.embeddings.to(text.embeddings.dtype) for part in parts]),
        torch.cat([part.mask for part in parts]),
    )


def padded(text: TextFeatures, length: int) -> TextFeatures:
    """Features (B, length, E); the columns that are added are masked."""
    extra = length - text.mask.shape[1]
    return TextFeatures(
        torch.nn.functional.pad(text.embeddings, (0, 0, 0, extra)),
        torch.nn.functional.pad(text.mask, (0, extra)),
    )


def rows_for(text: TextFeatures, num_pictures: int, halves: int = 1) -> TextFeatures:
    """`halves` halves of `num_pictures` rows each, single rows repeated."""
    rows = len(text.mask) // halves
    if rows not in (1, num_pictures):
        raise InputError(
            f"guidance needs one row of text a picture, or one for all: "
            f"got {rows} rows for {num_pictures} pictures"
        )
    return text if rows == num_pictures else text.repeat_interleave(num_pictures)
