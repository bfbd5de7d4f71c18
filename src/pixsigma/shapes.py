"""The letters that shapes are written in: one meaning in the whole house.

    B  batch                       C  latent channels (4)
    H  latent height               W  latent width
    P  patch side (2)              N  image tokens, H·W / P²
    L  text tokens                 E  text features (4096 for T5-XXL)
    D  width of the transformer    A  attention heads
    K  size of a head, D / A       S  sampling steps

Picture heights and widths are in pixels and written out (`height`, `width`); latents are eight
times smaller a side. `x` is always a noisy latent, `x0` the clean one, `eps` the noise. Times run
from noise to image. Numbers counted are `num_x`.
"""

from typing import TypeAlias

from torch import Tensor

Latents: TypeAlias = Tensor
"""(B, C, H, W), scaled to about unit variance."""

Images: TypeAlias = Tensor
"""(B, 3, height, width), values in [-1, 1]."""

Timesteps: TypeAlias = Tensor
"""(B,) in [0, 999], float32, fractions allowed: what the network is told."""
