"""The authors' features on disk: T5 states as `.npz`, moments of the autoencoder as `.npy`."""

import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixsigma.data.manifest import Kind
from pixsigma.errors import CorruptWeightsError, MismatchError, MissingWeightsError

_TEXT_FOLDERS: dict[str, str] = {
    "short": "caption_features_new",
    "long": "sharegpt4v_caption_features_new",
}


def feature_files(
    root: Path, path: str, kinds: Sequence[Kind], resolution: int, square: bool
) -> tuple[str, ...]:
    """Where the authors' tools put the features of one picture: latents, then one a caption.

    `path` is as in their list. Sets of several shapes (`_ms`) take the last folder into the name,
    `a/b.png` is `a_b`; sets of square pictures only the file's own name.
    """
    joined = "_".join(path.rsplit("/", 1))
    name = PurePosixPath(path).stem if square else joined[: -len(PurePosixPath(path).suffix)]
    kind = "" if square else "_ms"
    data = root / "InternData"
    latents = data / f"img_sdxl_vae_features_{resolution}resolution{kind}_new" / f"{name}.npy"
    texts = [data / _TEXT_FOLDERS[kind] / f"{name}.npz" for kind in kinds]
    return tuple(map(str, (latents, *texts)))


def read_moments(path: Path | str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, H, W) float32, neither shifted nor scaled.

    A file holds (2C, H, W): means, then deviations. Raises MissingWeightsError,
    CorruptWeightsError or MismatchError.
    """
    array = _numbers(path, _load(path))
    if array.ndim != 3 or array.shape[0] % 2 or 0 in array.shape:
        raise MismatchError(
            f"latents on disk are (2C, H, W), means and then deviations, got {array.shape} in "
            f"{path}"
        )
    mean, std = torch.from_numpy(array.astype(np.float32)).chunk(2)
    if bool((std < 0).any()):
        raise MismatchError(
            f"{path}: the second half of the channels must be standard deviations, and some are "
            "negative: are they logarithms of the variance?"
        )
    return mean, std


def read_states(path: Path | str, max_tokens: int) -> Tensor:
    """T5's states (L, E) float32 of the tokens that the mask keeps; padding is left out.

    A file holds `caption_feature` (1, L, E) and perhaps `attention_mask` (1, L). Raises
    MissingWeightsError, CorruptWeightsError or MismatchError, also for more than `max_tokens`.
    """
    arrays = _load(path)
    if not isinstance(arrays, dict) or "caption_feature" not in arrays:
        raise MismatchError(f"{path} must hold caption_feature, as the authors' tools write it")
    states = _numbers(path, arrays["caption_feature"])
    if states.ndim != 3 or states.shape[0] != 1 or 0 in states.shape:
        raise MismatchError(f"{path}: caption_feature must be (1, L, E), got {states.shape}")
    mask = arrays.get("attention_mask", np.ones(states.shape[:2]))
    if mask.size != states.shape[1]:
        raise MismatchError(
            f"{path}: attention_mask must have {states.shape[1]} values, got shape {mask.shape}"
        )
    kept = torch.from_numpy(states[0].astype(np.float32))[torch.from_numpy(mask.reshape(-1) != 0)]
    if not 1 <= len(kept) <= max_tokens:
        raise MismatchError(
            f"{path} has {len(kept)} tokens and the model reads 1 to {max_tokens}; encode anew"
        )
    return kept


def _load(path: Path | str) -> Any:
    """An array, or a dict of arrays; pickles inside are refused by numpy itself."""
    if not Path(path).is_file():
        raise MissingWeightsError(f"no features at {path}: extract them first")
    try:
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptWeightsError(f"{path} cannot be read: {error}; extract it again") from error


def _numbers(path: Path | str, array: Any) -> Any:
    if isinstance(array, dict) or not np.issubdtype(array.dtype, np.floating):
        raise MismatchError(f"{path} must hold an array of floats")
    if not np.isfinite(array).all():
        raise MismatchError(f"{path} holds NaN or infinity; extract it again")
    return array
