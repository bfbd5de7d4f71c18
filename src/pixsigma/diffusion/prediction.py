"""What a network predicted, in every coordinate that a sampler may want."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pixsigma.diffusion.schedule import Level
from pixsigma.errors import UnknownNameError
from pixsigma.shapes import Latents


@dataclass(frozen=True)
class Prediction:
    """The clean latents and the noise that together make `x = alpha x0 + sigma eps`."""

    x0: Latents
    eps: Latents
    variance_fraction: Tensor | None = None
    """Learned interpolation between the posterior and the prior variance, in [-1, 1]."""


def predicted(output: Tensor, x: Latents, level: Level, prediction_type: str) -> Prediction:
    """Read a network's raw output (B, C or 2C, H, W) at `x`.

    `epsilon`: x0 = (x - sigma eps) / alpha. `sample`: eps = (x - alpha x0) / sigma.
    `v_prediction`: v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D).
    """
    variance = None
    if output.shape[1] == 2 * x.shape[1]:
        output, variance = output.chunk(2, dim=1)
    output = output.to(x.dtype)
    alpha, sigma = level.alpha, level.sigma
    if prediction_type == "epsilon":
        return Prediction((x - sigma * output) / alpha, output, variance)
    if prediction_type == "sample":
        return Prediction(output, (x - alpha * output) / sigma, variance)
    if prediction_type == "v_prediction":
        return Prediction(alpha * x - sigma * output, alpha * output + sigma * x, variance)
    raise UnknownNameError(
        f"prediction_type must be epsilon, sample or v_prediction, got {prediction_type!r}"
    )


def from_x0(x0: Latents, x: Latents, level: Level) -> Prediction:
    """The prediction whose clean latents are `x0`; at sigma 0 the noise is taken as 0."""
    eps = (x - level.alpha * x0) / level.sigma if level.sigma else torch.zeros_like(x)
    return Prediction(x0, eps)
