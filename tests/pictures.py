"""Small data sets that tests draw, and a model small enough to encode them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pixsigma.weights.folder import save_autoencoder, save_text_encoder
from small import small_autoencoder, small_text_encoder


def draw(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """A smooth picture that depends on its seed."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    coarse.resize((width, height), Image.Resampling.BILINEAR).save(path)
    return path


def draw_folder(folder: Path) -> Path:
    """Nine good pictures in three shapes, and one for each reason to be refused."""
    for i, (width, height) in enumerate([(64, 64)] * 4 + [(96, 48)] * 3 + [(50, 100)] * 2):
        path = draw(folder / f"{i}.png", width, height, seed=i)
        path.with_suffix(".txt").write_text(f"picture number {i}")
    (folder / "0.long.txt").write_text("a long caption of the picture that has the number zero")
    for name, size in {"wide": (400, 40), "tall": (40, 400), "tiny": (20, 20)}.items():
        draw(folder / "bad" / f"{name}.png", *size, seed=20).with_suffix(".txt").write_text(name)
    draw(folder / "bad" / "silent.png", 64, 64, seed=30).with_suffix(".txt").write_text(" \n")
    draw(folder / "bad" / "untold.png", 64, 64, seed=31)
    twin = folder / "bad" / "twin.png"
    twin.write_bytes((folder / "3.png").read_bytes())
    twin.with_suffix(".txt").write_text("twin")
    broken = folder / "bad" / "broken.png"
    broken.write_bytes((folder / "3.png").read_bytes()[:200])
    broken.with_suffix(".txt").write_text("broken")
    (folder / "notes.txt").write_text("no caption of anything")
    return folder


def write_lines(path: Path, values: list[dict[str, object]]) -> Path:
    """A JSON lines file."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def small_encoders_folder(folder: Path) -> Path:
    """A text encoder (width 16) and an autoencoder (factor 2), no transformer."""
    save_text_encoder(small_text_encoder(), folder)
    save_autoencoder(small_autoencoder(), folder / "vae")
    return folder
