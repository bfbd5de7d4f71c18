"""Pictures of twice the side from the same latents: an autoencoder with one more level.

    python recipes/mini/larger.py VAE DATA OUT [--steps 1500]

VAE is a folder that `autoencoder.py` wrote, DATA the pictures of `data.py`. In OUT a latent covers
twice as many pixels a side, and a picture of 256 px has the latents that VAE gives the same picture
at 128 px; so whatever was trained on those goes on as it is, and draws at twice the side. All
levels of VAE are taken over. The encoder's new one is trained here, to hand on what VAE saw of
pictures of half the side; the decoder's repeats pixels until `autoencoder.py --decoder` trains it.
"""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoder import (
    CROP,
    WHOLE,
    Pictures,
    as_images,
    quality,
    read_paths,
    read_pictures,
    write_folder,
)
from torch import Tensor, nn

from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.weights.folder import read_autoencoder

STEPS, BATCH, LR = 1500, 16, 3e-3


def with_level(before: KLAutoencoder) -> Any:
    """The same with one more level at the pictures' side, as wide as the first was."""
    widths = (before.config.block_out_channels[0], *before.config.block_out_channels)
    model: Any = KLAutoencoder(dataclasses.replace(before.config, block_out_channels=widths))
    known = {moved(name): weight for name, weight in before.state_dict().items()}
    del known["encoder.conv_in.weight"], known["encoder.conv_in.bias"]
    model.load_state_dict(known, strict=False)
    last = model.decoder.up_blocks[-1]
    for resnet in (*model.encoder.down_blocks[0].resnets, *last.resnets):
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)
    repeats = model.decoder.up_blocks[-2].upsamplers[0].conv
    nn.init.dirac_(repeats.weight)
    nn.init.zeros_(repeats.bias)
    return model


def moved(name: str) -> str:
    """A weight's name where the encoder has one more level before it."""
    return re.sub(r"(encoder\.down_blocks\.)(\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}", name)


def learn_level(model: Any, before: Any, data: Pictures, steps: int) -> float:
    """Train the encoder's new level; returns the last error, relative to what is wanted."""
    enters = nn.Sequential(model.encoder.conv_in, model.encoder.down_blocks[0])
    optimizer = torch.optim.Adam(enters.parameters(), lr=LR)
    rng, errors = np.random.default_rng(0), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / steps)
        large, small = crops(data, rng)
        with torch.no_grad():
            wanted = before.encoder.conv_in(small)
        # what lies at a crop's edge has other neighbours in the whole picture
        error = (enters(large) - wanted)[..., 2:-2, 2:-2].square().mean() / wanted.square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    return float(np.mean(errors[-100:]) ** 0.5)


def crops(data: Pictures, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The same part of some pictures at both sides."""
    rows = rng.integers(len(data[WHOLE]), size=BATCH)
    top, left = rng.integers((WHOLE - CROP) // 2 + 1, size=2) * 2
    small = data[WHOLE][rows, :, top : top + CROP, left : left + CROP]
    top, left, side = 2 * top, 2 * left, 2 * CROP
    large = data[2 * WHOLE][rows, :, top : top + side, left : left + side]
    return as_images(large), as_images(small)


@torch.no_grad()
def kept(model: Any, before: Any, held: Pictures) -> float:
    """How far the latents of held-out pictures are from those before, relative to these."""
    wanted, _ = before.moments(as_images(held[WHOLE]))
    found, _ = model.moments(as_images(held[2 * WHOLE]))
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def main() -> None:
    """Parse, read, train, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("vae", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.manual_seed(0)
    before = read_autoencoder(args.vae, dtype=torch.float32)
    model = with_level(before).requires_grad_(True)
    train, out = read_paths(args.data, seed=0)
    held = read_pictures(out)
    error = learn_level(model, before, read_pictures(train), args.steps)
    print(f"the level hands on with an error of {error:.1%}")
    print(f"latents of pictures held out are off by {kept(model, before, held):.1%}")
    print(quality(model, {2 * WHOLE: held[2 * WHOLE]}))
    write_folder(model, model.config, args.out)


if __name__ == "__main__":
    main()
