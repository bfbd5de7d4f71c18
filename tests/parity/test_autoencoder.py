"""Our autoencoder against diffusers', one's random weights loaded into the other as they are."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pixsigma.config import AutoencoderConfig
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.tiling import decode_tiled, encode_tiled

BASE: dict[str, Any] = {
    "block_out_channels": (8, 16, 16, 24),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}
SDXL = BASE | {"layers_per_block": 2, "scaling_factor": 0.13025}
SHIFTED = BASE | {
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
NO_ATTENTION = BASE | {"scaling_factor": 0.5, "mid_block_add_attention": False}
KINDS = {"sdxl": SDXL, "shifted": SHIFTED, "no attention": NO_ATTENTION}


def pair(values: dict[str, Any]) -> tuple[Any, KLAutoencoder]:
    """diffusers' autoencoder with weights of every kind random, and ours with the same."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    levels = len(values["block_out_channels"])
    theirs = AutoencoderKL(
        **values,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    ).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.1)
    ours = KLAutoencoder(AutoencoderConfig(**values)).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def scaled(mean: Tensor, config: AutoencoderConfig) -> Tensor:
    return (mean - (config.shift_factor or 0.0)) * config.scaling_factor


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative, in L2."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
@torch.no_grad()
def test_encodes_and_decodes_alike(kind: str, size: tuple[int, int]) -> None:
    theirs, ours = pair(KINDS[kind])
    images = torch.rand(2, 3, *size) * 2 - 1
    posterior = theirs.encode(images).latent_dist
    mean, std = ours.moments(images)
    assert distance(mean, posterior.mean) <= 1e-5
    assert distance(std, posterior.std) <= 1e-5
    latents = scaled(posterior.mode(), ours.config)
    assert distance(ours.encode(images), latents) <= 1e-5
    assert distance(ours.decode(latents), theirs.decode(posterior.mode()).sample) <= 1e-5


@pytest.mark.parametrize("kind", ["sdxl", "shifted"])
@pytest.mark.parametrize("size", [(96, 136), (64, 72), (104, 56)])
@torch.no_grad()
def test_tiles_alike(kind: str, size: tuple[int, int]) -> None:
    theirs, ours = pair(KINDS[kind])
    images = torch.rand(1, 3, *size) * 2 - 1
    whole = ours.encode(images)
    theirs.enable_tiling()
    mean = theirs.encode(images).latent_dist.mean
    latents = scaled(mean, ours.config)
    assert distance(encode_tiled(ours, images), latents) <= 1e-5
    assert distance(whole, latents) > 1e-4, "tiles must matter for the comparison to tell anything"
    assert distance(decode_tiled(ours, latents), theirs.decode(mean).sample) <= 1e-5
