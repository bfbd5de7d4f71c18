"""Put the trained parts together as one folder in diffusers layout, in half precision.

    python recipes/mini/assemble.py TRANSFORMER VAE TEXT OUT [--captions DATA/captions.jsonl]

TRANSFORMER and VAE are folders; TEXT holds `text_encoder/` and `tokenizer/`. With `--captions` the
folder tells their words, so that whoever asks for another is told.
"""

import argparse
from pathlib import Path

import torch
from lines import read_lines

from pixsigma.config import ScheduleConfig
from pixsigma.diffusion.samplers import get_sampler
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.models.text import words_in
from pixsigma.weights.folder import (
    read_autoencoder,
    read_text_encoder,
    read_transformer,
    save_folder,
)

MAX_TOKENS = 120
GUIDANCE_SCALE = 3.0
"""Where more of its things are known than at the usual 4.5."""
LARGEST = 48 * 2**20
"""Bytes that the folder may have, so that the package stays a small download."""


def words_of(captions: Path) -> frozenset[str]:
    """All words of all captions."""
    rows = read_lines(captions)
    return frozenset(word for row in rows for text in row["captions"] for word in words_in(text))


def main() -> None:
    """Parse, read, write, weigh."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("transformer", "vae", "text", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--captions", type=Path)
    args = parser.parse_args()
    half = torch.float16
    text_encoder = read_text_encoder(args.text, dtype=half, max_tokens=MAX_TOKENS)
    if args.captions is not None:
        text_encoder.words = words_of(args.captions)
    save_folder(
        args.out,
        transformer=read_transformer(args.transformer, dtype=half),
        autoencoder=read_autoencoder(args.vae, dtype=half),
        text_encoder=text_encoder,
        sampler=get_sampler("dpm++2m"),
        schedule=NoiseSchedule(ScheduleConfig(prediction_type="v_prediction")),
        guidance_scale=GUIDANCE_SCALE,
    )
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 2**20:.1f} MiB")
    if size > LARGEST:
        raise SystemExit(f"mini may have {LARGEST / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
