"""The ways in which the autoencoder works through a picture, by name."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

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


def check_way(way: str) -> None:
    """Raise UnknownNameError for a way that is not in the table."""
    if way not in WAYS:
        raise UnknownNameError(f"pictures are decoded in one of {', '.join(WAYS)}, got {way!r}")
