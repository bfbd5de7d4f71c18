"""What the parts promise one another; each part can be swapped for anything that keeps its word."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from pixsigma.shapes import Images, Latents, Timesteps


@dataclass(frozen=True)
class TextFeatures:
    """What the transformer reads of the prompts."""

    embeddings: Tensor
    """(B, L, E)"""
    mask: Tensor
    """(B, L), bool: true where there is a token, false where there is padding."""
    leading: bool = False
    """Whether it is what a drawing leads to, so that pictures may stand beside it."""

    def trimmed(self) -> "TextFeatures":
        """Without the columns that are padding in every row; attention masks them anyway."""
        used = int(self.mask.any(dim=0).nonzero().max()) + 1 if self.mask.any() else 1
        return replace(self, embeddings=self.embeddings[:, :used], mask=self.mask[:, :used])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "TextFeatures":
        """Move both tensors, cast the embeddings."""
        embeddings = self.embeddings.to(device, dtype)
        return replace(self, embeddings=embeddings, mask=self.mask.to(device))

    def repeat_interleave(self, repeats: int) -> "TextFeatures":
        """Each row `repeats` times in a row: several pictures of one prompt."""
        return replace(
            self,
            embeddings=self.embeddings.repeat_interleave(repeats, dim=0),
            mask=self.mask.repeat_interleave(repeats, dim=0),
        )


@dataclass(frozen=True)
class Conditions:
    """Micro-conditions of PixArt-α 1024: what size and aspect the picture should seem to have."""

    resolution: Tensor
    """(B, 2), height and width in pixels."""
    aspect_ratio: Tensor
    """(B, 1), height / width."""


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """Which part of a batch has its self-attention disturbed, where and how."""

    kind: Literal["identity", "blur"]
    layers: tuple[int, ...]
    num_rows: int
    """The last rows of the batch are disturbed."""
    blur: float | None = None
    """Standard deviation in tokens; None blurs without end."""


class TextEncoder(Protocol):
    """Prompts to features."""

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """One row a prompt, padded to a common length."""
        ...


class Denoiser(Protocol):
    """The network: noisy latents, times and text to what it was trained to predict."""

    def __call__(
        self, x: Latents, t: Timesteps, text: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return (B, C or 2C, H, W): the prediction, then the variance fraction where learned."""
        ...


class Autoencoder(Protocol):
    """Pictures to latents and back."""

    def encode(self, images: Images) -> Latents:
        """Scaled latents, the mean of the posterior."""
        ...

    def decode(self, latents: Latents) -> Images:
        """Pictures in about [-1, 1], not clamped."""
        ...
