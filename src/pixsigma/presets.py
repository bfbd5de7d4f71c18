"""The named models as values in one table."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from pixsigma.config import TransformerConfig
from pixsigma.errors import UnknownNameError

Variant: TypeAlias = Literal["sigma", "alpha"]

GUIDANCE_SCALE = 4.5
"""What suits the published models."""

MAX_TOKENS: dict[Variant, int] = {"sigma": 300, "alpha": 120}
"""L that the published models were trained with."""

TEXT_AND_VAE: dict[Variant, str] = {
    "sigma": "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers",
    "alpha": "PixArt-alpha/PixArt-XL-2-1024-MS",
}
"""Hub names of a text encoder and an autoencoder for a transformer that comes alone."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published model: where it is and what it is."""

    name: str
    variant: Variant
    resolution: int
    """Side in pixels of the pictures that it was trained on."""
    max_tokens: int
    hub: str | None
    """Repository in diffusers layout; None for the model inside this package."""
    file: str | None = None
    """`org/repository/name.pth`: the authors' own file."""
    transformer: TransformerConfig | None = None
    """None: told by the model's folder."""
    text_and_vae: str | None = None
    """Repository of the other parts, where `hub` holds only the transformer."""


def xl(variant: Variant, resolution: int) -> TransformerConfig:
    """The config of PixArt-XL/2: 28 layers, width 1152.

    Σ scales positions by side / 512 at every size, α only above 512; α at 1024 knows sizes.
    """
    scale = resolution / 512
    return TransformerConfig(
        sample_size=resolution // 8,
        interpolation_scale=scale if variant == "sigma" else max(scale, 1.0),
        use_additional_conditions=variant == "alpha" and resolution == 1024,
    )


def _published(name: str, variant: Variant, resolution: int, stem: str) -> Preset:
    family = "PixArt-Sigma" if variant == "sigma" else "PixArt-alpha"
    return Preset(
        name=name,
        variant=variant,
        resolution=resolution,
        max_tokens=MAX_TOKENS[variant],
        hub=f"PixArt-alpha/{stem}",
        file=f"PixArt-alpha/{family}/{stem}.pth",
        transformer=xl(variant, resolution),
        text_and_vae=TEXT_AND_VAE[variant],
    )


_ALL = (
    Preset(name="mini", variant="sigma", resolution=256, max_tokens=120, hub=None),
    _published("sigma-256", "sigma", 256, "PixArt-Sigma-XL-2-256x256"),
    _published("sigma-512", "sigma", 512, "PixArt-Sigma-XL-2-512-MS"),
    _published("sigma-1024", "sigma", 1024, "PixArt-Sigma-XL-2-1024-MS"),
    _published("sigma-2k", "sigma", 2048, "PixArt-Sigma-XL-2-2K-MS"),
    _published("alpha-256", "alpha", 256, "PixArt-XL-2-256x256"),
    _published("alpha-512", "alpha", 512, "PixArt-XL-2-512x512"),
    _published("alpha-1024", "alpha", 1024, "PixArt-XL-2-1024-MS"),
)

PRESETS = MappingProxyType({p.name: p for p in _ALL})
"""By short name; `mini` needs no download."""


def preset(name: str) -> Preset:
    """The preset of that name; raises UnknownNameError with the names that there are."""
    if name not in PRESETS:
        raise UnknownNameError(f"a preset is one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
