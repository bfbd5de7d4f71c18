"""What enters the transformer: patches, positions, times, captions and micro-conditions."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from pixsigma.models.products import Linear, strip
from pixsigma.shapes import Timesteps


def sincos(values: Tensor, num_features: int) -> Tensor:
    """Angles of `values` (M,) at half as many frequencies as features: (M, features/2) float64."""
    half = num_features // 2
    omega = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=values.device) / half)
    return values.double()[:, None] * omega


def positions_2d(h: int, w: int, width: int, extent: float, device: torch.device) -> Tensor:
    """Sine-cosine position embedding of an h × w grid of tokens: (h·w, D) float32.

    Coordinates run over [0, extent) on both axes whatever h and w are, so a model keeps its sense
    of place at every size and aspect (PixArt-Σ, "position embedding interpolation"). Channels are
    [sin x, cos x, sin y, cos y]: the column comes first, as in the published weights.
    """
    # The published grids divide in float32 before the float64 sines: one ulp matters at 1e-7.
    y = torch.arange(h, dtype=torch.float32, device=device) / (h / extent)
    x = torch.arange(w, dtype=torch.float32, device=device) / (w / extent)
    columns, rows = (
        torch.cat([angles.sin(), angles.cos()], dim=1).float()
        for angles in (sincos(x, width // 2), sincos(y, width // 2))
    )
    return torch.cat([columns.repeat(h, 1), rows.repeat_interleave(w, dim=0)], dim=1)


STRIP_BYTES = 16 * 2**20
"""Hidden values of an Mlp that lie in memory at once: what stays in a cache is not paged in."""


class Mlp(nn.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, num_in: int, num_hidden: int, num_out: int) -> None:
        super().__init__()
        self.fc1 = Linear(num_in, num_hidden)
        self.fc2 = Linear(num_hidden, num_out)

    def forward(self, x: Tensor) -> Tensor:
        """(…, num_in) to (…, num_out)."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
            return self.fc2(self.hidden(x))
        num_rows = strip(STRIP_BYTES // (self.fc1.out_features * x.element_size()))
        strips = [self.fc2(self.hidden(rows)) for rows in x.flatten(0, -2).split(num_rows)]
        return torch.cat(strips).unflatten(0, x.shape[:-1])

    def hidden(self, x: Tensor) -> Tensor:
        """(…, num_in) to (…, num_hidden)."""
        if isinstance(self.fc1, Linear):
            return self.fc1(x, "gelu")
        # an adapter in its place adds to what comes before the GELU
        return gelu(self.fc1(x), approximate="tanh")


class PatchEmbedder(nn.Module):
    """Squares of P × P latents to tokens."""

    def __init__(self, num_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(num_channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, D), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class ScalarEmbedder(nn.Module):
    """A number (a timestep, a size) to a vector: 256 cosines and sines, then a small network."""

    num_frequencies = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.num_frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, values: Timesteps) -> Tensor:
        """(B,) to (B, D); the frequencies stay float32, since bf16 would round t to fours."""
        half = self.num_frequencies // 2
        steps = torch.arange(half, dtype=torch.float32, device=values.device)
        angles = values.float()[:, None] * torch.exp(-math.log(10000) * steps / half)
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class CaptionEmbedder(nn.Module):
    """Text features to the width of the transformer."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.y_proj = Mlp(num_features, width, width)

    def forward(self, text: Tensor) -> Tensor:
        """(B, L, E) to (B, L, D)."""
        return self.y_proj(text)
