"""What each network takes, counted without a number: multiplications and living bytes, in fp32."""

from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch

from pixsigma.config import AutoencoderConfig, T5Config, TransformerConfig
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.controlled import Control, Controlled
from pixsigma.models.strips import decode_strips, sheet_room
from pixsigma.models.t5 import T5Encoder
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.rehearsal import Cost, rehearse
from pixsigma.weights.controls import Outline
from pixsigma.weights.streaming import in_order

SAMPLE = 512
"""Side in pixels at which strips are rehearsed; beyond it they are in proportion."""


@cache
def parameters(network: Any, *settings: Any) -> int:
    """How many numbers the weights are."""
    with torch.device("meta"):
        return sum(p.numel() for p in network(*settings).parameters())


@cache
def matrices(config: T5Config) -> tuple[int, ...]:
    """How many numbers each matrix has that a streamed text encoder reads, in its order."""
    with torch.device("meta"):
        net = T5Encoder(config)
    return tuple(net.get_parameter(name).numel() for name in in_order(config))


@cache
def text_cost(config: T5Config, tokens: int) -> Cost:
    """One prompt."""
    with torch.device("meta"):
        net, ids = T5Encoder(config), torch.zeros(1, tokens, dtype=torch.int64)
    return rehearse(lambda: net(ids, ids.bool()))


@cache
def step_cost(
    config: TransformerConfig,
    height: int,
    width: int,
    rows: int,
    tokens: int,
    controls: tuple[Outline, ...] = (),
) -> Cost:
    """One step of latents of this size, with what stands beside the transformer."""
    with torch.device("meta"):
        base = PixArtTransformer(config)
        hint = torch.empty(1, config.in_channels, height, width)
        beside = [Control(outline.network(config), hint) for outline in controls]
        net: Any = Controlled(base, beside) if beside else base
        x, t = torch.empty(rows, config.in_channels, height, width), torch.empty(1)
        text = torch.empty(1, tokens, config.caption_channels)
        captions = [net.read(text, leading=True) if beside else net.read(text)] * rows
    return rehearse(lambda: net(x, net.embed(t), captions, variance=False))


@cache
def encode_flops(config: AutoencoderConfig) -> float:
    """A pixel of a picture."""
    with torch.device("meta"):
        net, images = KLAutoencoder(config), torch.empty(1, 3, SAMPLE, SAMPLE)
    return rehearse(lambda: net.encode(images)).flops / SAMPLE**2


@cache
def decode_cost(config: AutoencoderConfig, way: str, height: int, width: int) -> Cost:
    """One picture in pixels; strips of large ones in proportion to small ones."""
    if way == "whole":
        return _decoded(config, "whole", height, width)
    if way == "tiles":
        side = config.sample_size
        tile = _decoded(config, "whole", min(side, height), min(side, width))
        pixels = height * width
        again = 1.0 if max(height, width) <= side else 16 / 9  # each is shifted by 3/4 of its side
        share = pixels * again / (min(side, height) * min(side, width))
        return tile.times(share).beside(24 * pixels)
    most = max(height, width)
    factor = config.factor
    small = tuple(
        max(factor, side * min(SAMPLE, most) // most // factor * factor) for side in (height, width)
    )
    sample = _decoded(config, way, small[0], small[1])
    ratio = height * width / (small[0] * small[1])
    numbers = config.block_out_channels[-1] * height * width / factor**2
    attention = 4.0 * (numbers / config.block_out_channels[-1]) * numbers
    itemsize = {"strips": 4, "strips-half": 2, "strips-spill": 0}[way]
    pixels = height * width
    fixed = max(0, sample.num_bytes - sheet_room(config, small[0] * small[1], itemsize))
    # keys, values and queries of the middle; the picture and a copy of it
    growing = max(sheet_room(config, pixels, itemsize), 12 * numbers) + 24 * pixels
    flops = (sample.flops - attention / ratio**2) * ratio + attention
    return Cost(flops=flops, attention=attention, num_bytes=int(fixed + growing))


def _decoded(config: AutoencoderConfig, way: str, height: int, width: int) -> Cost:
    factor = config.factor
    with torch.device("meta"):
        net = KLAutoencoder(config)
        z = torch.empty(1, config.latent_channels, height // factor, width // factor)
    if way == "whole":
        return rehearse(lambda: net.decode(z))
    keep: Literal["exact", "half"] = "half" if way == "strips-half" else "exact"
    cost = rehearse(lambda: decode_strips(net, z, keep=keep))
    if way != "strips-spill":
        return cost
    kept = sheet_room(config, height * width, 4)
    return replace(cost, num_bytes=max(0, cost.num_bytes - kept))
