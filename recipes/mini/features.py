"""Encode the pictures of `data.py` once: latents at one size and the text of every caption.

    python recipes/mini/features.py DATA FEATURES.safetensors --size 64 --vae VAE --text TEXT

DATA holds `images/` and `captions.jsonl`; VAE is a diffusers autoencoder folder; TEXT holds
`text_encoder/` and `tokenizer/`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from lines import Row, read_lines
from PIL import Image
from torch import Tensor

from pixsigma.interfaces import TextFeatures
from pixsigma.weights.files import save_tensors
from pixsigma.weights.folder import read_autoencoder, read_text_encoder

TEXT_BATCH, IMAGE_BATCH = 256, 32


def pixels(path: Path, size: int) -> Tensor:
    """(3, size, size) in [-1, 1]."""
    picture = Image.open(path).convert("RGB")
    picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


@torch.no_grad()
def encode_images(
    paths: list[Path], size: int, vae_folder: Path, bf16: bool = False
) -> dict[str, Tensor]:
    """`mean` and `std`, shifted and scaled as the transformer sees latents.

    With `bf16` a mean is off by 0.006 on average, where its deviation over pictures is 1.
    """
    vae = read_autoencoder(vae_folder, dtype=torch.float32)
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    means, stds = [], []
    for first in range(0, len(paths), IMAGE_BATCH):
        batch = torch.stack([pixels(p, size) for p in paths[first : first + IMAGE_BATCH]])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            mean, std = vae.moments(batch)
        means.append((mean - shift) * scale)
        stds.append(std * scale)
        print(f"\rpictures {first + len(batch)}/{len(paths)}", end="", flush=True)
    print()
    return {"mean": torch.cat(means).half(), "std": torch.cat(stds).half()}


@torch.no_grad()
def encode_text(captions: list[str], folder: Path) -> dict[str, Tensor]:
    """`text`, `text_mask` and the empty caption's, all padded to one length."""
    encoder = read_text_encoder(folder, dtype=torch.float32, max_tokens=64)
    rows: list[TextFeatures] = []
    for first in range(0, len(captions), TEXT_BATCH):
        rows.append(encoder.encode(captions[first : first + TEXT_BATCH]))
    rows.append(encoder.encode([""]))
    length = max(r.mask.shape[1] for r in rows)
    length += -length % 8
    text = torch.cat([pad_length(r.embeddings, length) for r in rows]).half()
    mask = torch.cat([pad_length(r.mask, length) for r in rows])
    return {
        "text": text[:-1].clone(),
        "text_mask": mask[:-1].clone(),
        "null_text": text[-1:].clone(),
        "null_mask": mask[-1:].clone(),
    }


def pad_length(x: Tensor, length: int) -> Tensor:
    """Zeros behind the second axis up to `length`."""
    out = x.new_zeros(x.shape[0], length, *x.shape[2:])
    out[:, : x.shape[1]] = x
    return out


def caption_table(rows: list[Row]) -> tuple[list[str], Tensor]:
    """All different captions, and for each picture the rows of its own, -1 behind them."""
    unique = sorted({c for row in rows for c in row["captions"]})
    place = {c: i for i, c in enumerate(unique)}
    table = torch.full((len(rows), max(len(r["captions"]) for r in rows)), -1)
    for i, row in enumerate(rows):
        table[i, : len(row["captions"])] = torch.tensor([place[c] for c in row["captions"]])
    return unique, table


def epoch(rows: list[Row], white: int, single: int) -> list[int]:
    """Rows of one epoch: one thing on white `white` times, compositions once, others `single`."""
    seen = []
    for i, row in enumerate(rows):
        plain = row["background"] == "white" and not row.get("composed")
        times = 1 if row["kind"] == "composition" else white if plain else single
        seen += [i] * times
    return seen


def main() -> None:
    """Parse, encode, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--white", type=int, default=3, help="times a picture on white is seen")
    parser.add_argument(
        "--single", type=int, default=1, help="times another picture that is no composition is seen"
    )
    parser.add_argument(
        "--bf16", action="store_true", help="encode pictures in bf16: quick on CPUs that have it"
    )
    args = parser.parse_args()
    rows = read_lines(args.data / "captions.jsonl")
    captions, table = caption_table(rows)
    tensors = encode_text(captions, args.text)
    tensors |= encode_images([args.data / r["path"] for r in rows], args.size, args.vae, args.bf16)
    tensors["captions"] = table
    seen = torch.tensor(epoch(rows, args.white, args.single))
    # White is what a prompt without a background means, and where a shape is learned quickest.
    tensors |= {name: tensors[name][seen] for name in ("mean", "std", "captions")}
    save_tensors(tensors, args.out)
    print({name: tuple(t.shape) for name, t in tensors.items()})


if __name__ == "__main__":
    main()
