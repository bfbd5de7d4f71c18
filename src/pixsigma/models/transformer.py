"""The PixArt-Σ diffusion transformer: the forward pass is the figure of the paper."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from pixsigma.config import TransformerConfig
from pixsigma.interfaces import Conditions, Perturbation
from pixsigma.models.blocks import Block, Words, modulated_norm
from pixsigma.models.embeddings import (
    CaptionEmbedder,
    PatchEmbedder,
    ScalarEmbedder,
    positions_2d,
)
from pixsigma.shapes import Latents, Timesteps

Caption: TypeAlias = Sequence[Words]
"""A text as every layer reads it: projected once a picture, not once a step."""

Added: TypeAlias = Callable[[Tensor, Tensor, tuple[int, int]], Iterator[Tensor]]
"""Tokens (B, N, D), t0 and grid to what is added to tokens, block by block."""


class Times(NamedTuple):
    """A time as the network reads it; one row where all pictures share it."""

    t: Tensor
    """(B or 1, D), before `t_block`."""
    t0: Tensor
    """(B or 1, 6, D), shared by all blocks."""


class Head(nn.Linear):
    """The last product, of which the first channels alone can be computed."""

    def __init__(self, width: int, num_squares: int, num_channels: int) -> None:
        super().__init__(width, num_squares * num_channels)
        self.num_squares = num_squares

    def forward(self, x: Tensor, share: float = 1.0) -> Tensor:
        """(B, N, D) to (B, N, P·P·out) with this share of the channels."""
        if share == 1:
            return super().forward(x)
        return linear(x, self.first(self.weight, share), self.first(self.bias, share))

    def first(self, rows: Tensor, share: float) -> Tensor:
        """(P·P·out, …) without the channels that are not wanted; channels run fastest."""
        squares = rows.unflatten(0, (self.num_squares, -1))
        return squares[:, : int(squares.shape[1] * share)].flatten(0, 1)


class FinalLayer(nn.Module):
    """Tokens back to patches."""

    def __init__(self, width: int, num_squares: int, num_channels: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.linear = Head(width, num_squares, num_channels)

    def forward(self, x: Tensor, t: Tensor, share: float = 1.0) -> Tensor:
        """x (B, N, D) and t (B or 1, D), the time before `t_block`, to (B, N, P·P·out).

        `share` is how much of the channels is wanted, the first ones.
        """
        shift, scale = (self.scale_shift_table + t[:, None]).unsqueeze(2).unbind(1)
        return self.linear(modulated_norm(x, shift, scale), share)


class ReadLate(Sequence[Words]):
    """A text that a layer reads when its turn comes, so that nothing of it need be kept."""

    def __init__(self, read: Sequence[Callable[[], Words]]) -> None:
        self._read = read

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, layer: Any) -> Any:
        """The Words of a layer, computed anew."""
        return self._read[layer]()


recomputed = partial(checkpoint, use_reentrant=False)


def block_of(config: TransformerConfig, layer: int) -> Block:
    """A block as the network of this config has it in this place."""
    compression = config.kv_compression
    ratio = compression.ratio if compression and layer in compression.layers else 1
    return Block(config.width, config.num_attention_heads, config.qk_norm, ratio)


class PixArtTransformer(nn.Module):
    """PixArt-Σ and PixArt-α of any depth and width (Chen et al. 2023, 2024).

    Parameters bear the names of the authors' `.pth` files, so those load without translation.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = PatchEmbedder(config.in_channels, width, config.patch_size)
        self.t_embedder = ScalarEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbedder(config.caption_channels, width)
        if config.use_additional_conditions:
            self.csize_embedder = ScalarEmbedder(width // 3)
            self.ar_embedder = ScalarEmbedder(width // 3)
        self.blocks = nn.ModuleList(block_of(config, i) for i in range(config.num_layers))
        self.final_layer = FinalLayer(width, config.patch_size**2, config.out_channels)
        self.recompute = False
        """Whether training keeps only what enters a block: less memory, a third slower."""

    def forward(
        self,
        x: Latents,
        t: Timesteps | Times,
        text: Tensor | Sequence[Caption],
        mask: Tensor | None = None,
        conditions: Conditions | None = None,
        perturbation: Perturbation | None = None,
        variance: bool = True,
        control: Added | None = None,
    ) -> Tensor:
        """Predict noise and variance.

        x (B, C, H, W), t (B,) in [0, 999], text (B, L, E), mask (B, L) true where there is a token
        (None: everywhere). Returns (B, 2C, H, W): eps, then the variance fraction where learned.
        What several steps share is given ready: `t` of `embed`, texts of `read`, each for an equal
        part of the rows. `perturbation` disturbs the last rows of the batch, for guidance away from
        them. Without `variance` (B, C, H, W) is returned. `control` tells from the first block's
        tokens what the inputs of the next blocks get.
        """
        x, grid = self.enter(x)  # (B, N, D)
        t, t0 = self.embed(t, conditions) if isinstance(t, Tensor) else t  # (B, D), (B, 6, D)
        captions = [self.read(text, mask)] if isinstance(text, Tensor) else text
        x = self.through(x, t0, captions, grid, perturbation=perturbation, control=control)
        return self.leave(x, t, grid, variance)

    def enter(self, x: Latents) -> tuple[Tensor, tuple[int, int]]:
        """Latents (B, C, H, W) to tokens (B, N, D) with their places, and the grid of tokens."""
        x = x.to(self.dtype)
        grid = x.shape[2] // self.config.patch_size, x.shape[3] // self.config.patch_size
        return self.x_embedder(x) + self.positions(*grid, x.device).to(x.dtype), grid

    def through(
        self,
        x: Tensor,
        t0: Tensor,
        captions: Sequence[Caption],
        grid: tuple[int, int],
        part: slice = slice(None),
        perturbation: Perturbation | None = None,
        control: Added | None = None,
    ) -> Tensor:
        """Tokens (B, N, D) through a part of the blocks; without gradients `x` is overwritten."""
        skips: Iterator[Tensor] = iter(())
        for i in range(len(self.blocks))[part]:
            if i == 1 and control is not None:
                skips = control(x, t0, grid)
            if (skip := next(skips, None)) is not None:
                x = x + skip
            # not `i in layers`: torch.compile gets that wrong where a number of them changes
            here = perturbation is not None and any(i == layer for layer in perturbation.layers)
            arguments = i, x, t0, captions, grid, perturbation if here else None
            x = recomputed(self.at, *arguments) if self.recompute else self.at(*arguments)
        return x

    def at(
        self,
        layer: int,
        x: Tensor,
        t0: Tensor,
        captions: Sequence[Caption],
        grid: tuple[int, int],
        perturbation: Perturbation | None,
    ) -> Tensor:
        """Tokens (B, N, D) through one block."""
        texts = [caption[layer] for caption in captions]
        return self.blocks[layer](x, t0, texts, grid, perturbation)

    def leave(self, x: Tensor, t: Tensor, grid: tuple[int, int], variance: bool = True) -> Tensor:
        """Tokens (B, N, D) to the answer (B, 2C, H, W), (B, C, H, W) without `variance`."""
        share = 0.5 if self.config.learns_variance and not variance else 1.0
        return self.unpatchify(self.final_layer(x, t, share), grid)

    def embed(self, t: Timesteps, conditions: Conditions | None = None) -> Times:
        """Times (B,) as `forward` reads them; one row serves all pictures of a batch."""
        embedded = self.embed_time(t, conditions)
        return Times(embedded, self.t_block(embedded).unflatten(1, (6, -1)))

    def read(self, text: Tensor, mask: Tensor | None = None) -> Caption:
        """Texts (B, L, E) as all layers read them; mask (B, L) is true where there is a token.

        In `forward` a row serves equally many consecutive pictures.
        """
        layers = [block.cross_attn for block in self.blocks if isinstance(block, Block)]
        text = text.to(self.dtype)
        if mask is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # In training captions are padded to one length, most of which is never looked at.
            mask = mask.bool()
            places = mask.flatten().nonzero().squeeze(1)  # (V,) of the B·L
            tokens = self.y_embedder(text.flatten(0, 1)[places])
            late = [partial(layer.read_packed, tokens, places, mask) for layer in layers]
        else:
            text = self.y_embedder(text)  # (B, L, D)
            seen = None if mask is None else mask.bool()[:, None, None]
            late = [partial(layer.read, text, seen) for layer in layers]
        if self.recompute and torch.is_grad_enabled():
            return ReadLate(late)
        return tuple(read() for read in late)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.x_embedder.proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.x_embedder.proj.weight.device

    def positions(self, h: int, w: int, device: torch.device) -> Tensor:
        """(h·w, D): coordinates over the same square at every size, [0, 32) in XL/2."""
        config = self.config
        extent = config.sample_size // config.patch_size / config.interpolation_scale
        return positions_2d(h, w, config.width, extent, device)

    def embed_time(self, t: Timesteps, conditions: Conditions | None) -> Tensor:
        """(B,) or (1,) to (B, D), with the micro-conditions of α where the model has them."""
        embedded: Tensor = self.t_embedder(t)
        if self.config.use_additional_conditions and conditions is not None:
            num = len(conditions.resolution)
            size = self.csize_embedder(conditions.resolution.flatten()).view(num, -1)
            aspect = self.ar_embedder(conditions.aspect_ratio.flatten()).view(num, -1)
            embedded = embedded + torch.cat([size, aspect], dim=1)
        return embedded

    def unpatchify(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h·w, P·P·C) to (B, C, h·P, w·P); channels run fastest inside a token."""
        p = self.config.patch_size
        x = tokens.unflatten(2, (p, p, -1)).unflatten(1, grid)  # (B, h, w, P, P, C)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start values of the authors' code.

        every linear              xavier uniform, bias 0
        x_embedder.proj           xavier uniform on the flattened patch
        embedders, t_block        N(0, 0.02)
        cross_attn.proj           0, so that text comes in gently
        final_layer.linear        0, so that the first prediction is 0
        scale_shift_table         N(0, 1) / sqrt(D)
        attn.sr                   1 / ratio², bias 0: an average
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            if isinstance(module, Block | FinalLayer):
                nn.init.normal_(module.scale_shift_table, std=1 / math.sqrt(self.config.width))
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        for name, weight in self.named_parameters():
            if re.fullmatch(r"(t_block|(\w+_)?embedder\.(mlp|y_proj))\..*weight", name):
                nn.init.normal_(weight, std=0.02)
            if name.endswith("cross_attn.proj.weight") or name == "final_layer.linear.weight":
                nn.init.zeros_(weight)
            if name.endswith("attn.sr.weight"):
                nn.init.constant_(weight, 1 / weight[0].numel())
            if name.endswith("attn.sr.bias"):
                nn.init.zeros_(weight)
