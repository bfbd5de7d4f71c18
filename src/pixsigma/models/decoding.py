"""The ways in which the autoencoder works through a picture, by name."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from pixsigma.errors import UnknownNameError
from pixsigma.interfaces import Autoencoder
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.strips import StripAutoencoder
from pixsigma.models.tiling import TiledAutoencoder


def _whole(autoencoder: KLAutoencoder) -> Autoencoder:
    return autoencoder


WAYS: Mapping[str, Callable[[KLAutoencoder], Autoencoder]] = MappingProxyType(
    {
        "whole": _whole,
        "strips": StripAutoencoder,
        "strips-half": partial(StripAutoencoder, keep="half"),
        "strips-spill": partial(StripAutoencoder, spill=True),
        "tiles": TiledAutoencoder,
    }
)
"""`whole`, `strips` and `strips-spill` (activations in a temporary file) give the same picture up
to rounding, `strips-half` one within about 1e-3, `tiles` (blended) one that differs visibly."""


def autoencoder_in(way: str, autoencoder: KLAutoencoder) -> Autoencoder:
    """The autoencoder that works in this way; raises UnknownNameError."""
    check_way(way)
    return WAYS[way](autoencoder)


@torch.no_grad()
def colours_of(autoencoder: Autoencoder, num_channels: int, device: torch.device) -> Tensor:
    """(C + 1, 3): what the autoencoder makes of flat latents, fitted by least squares."""
    one = torch.eye(num_channels)
    flat = torch.cat([torch.zeros(1, num_channels), one, -one])
    patches = flat[:, :, None, None].expand(-1, -1, 4, 4).to(device)
    colours = autoencoder.decode(patches).float().mean(dim=(2, 3)).cpu()
    inputs = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
    return torch.linalg.lstsq(inputs, colours).solution


def check_way(way: str) -> None:
    """Raise UnknownNameError for a way that is not in the table."""
    if way not in WAYS:
        raise UnknownNameError(f"pictures are decoded in one of {', '.join(WAYS)}, got {way!r}")
