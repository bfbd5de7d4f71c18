"""Answers of the text encoder on disk: a prompt that was read once needs no encoder again."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixsigma.config import T5Config
from pixsigma.errors import InputError, OutputError, WeightsError
from pixsigma.weights.files import Tensors, open_tensors, save_tensors

LARGE = 1_000_000_000
"""Bytes of weights from which on a text encoder is worth a cache unless told otherwise."""

_SAMPLE = 512  # numbers of each tensor that go into a fingerprint

_FORMAT = 1  # of keys and files; another one is another cache


def default_folder() -> Path:
    """Where prompts are kept unless told otherwise: in the person's folder for caches."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pixsigma" / "prompts"


def fingerprint(tensors: Tensors, config: T5Config) -> str:
    """What an encoder is: its config, names, shapes, types and some numbers of every tensor.

    Reads a few pages a tensor, so that even 19 GB are told apart at once. An encoder that was
    trained further differs everywhere, hence here too.
    """
    digest = hashlib.sha256(repr(config).encode())
    for key, spec in sorted(tensors.specs.items()):
        flat = tensors[key].flatten()
        begin = max(0, (len(flat) - _SAMPLE) // 2)
        some = flat[begin : begin + _SAMPLE].contiguous().view(torch.uint8)
        digest.update(f"{key} {spec.shape} {spec.dtype}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


class CachedT5(nn.Module):
    """An encoder that is opened only for prompts that are not on disk.

    The key of a prompt is made of the encoder's fingerprint, its precision, and the token ids and
    mask, which are what the tokenizer makes of the text. Each prompt is a safetensors file.
    """

    def __init__(
        self,
        folder: Path,
        config: T5Config,
        identity: str,
        dtype: torch.dtype,
        open_encoder: Callable[[], nn.Module],
    ) -> None:
        """Raises InputError where `folder` is a file."""
        super().__init__()
        if os.path.exists(folder) and not folder.is_dir():  # noqa: PTH110 - Path.exists may raise
            raise InputError(f"the prompt cache must be a folder, {folder} is a file")
        self.folder = folder
        self.config = config
        self.identity = identity
        self.dtype = dtype
        self.inner: nn.Module | None = None
        self.settle: Callable[[nn.Module], None] | None = None
        """Puts the encoder where it rests once it is open; None brings it to where the ids are."""
        self._open = open_encoder

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, E) for `ids` (B, L) and `mask` (B, L): read from disk, or computed and written."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        files = [self.file_of(row, seen) for row, seen in zip(ids, mask, strict=True)]
        shape = ids.shape[1], self.config.d_model
        rows = [read_row(file, shape) for file in files]
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            answers = self.whole(ids.device)(ids[missing], mask[missing])
            for i, answer in zip(missing, answers, strict=True):
                rows[i] = answer
                save_row(answer, files[i])
        return torch.stack([row.to(ids.device) for row in rows if row is not None])

    def file_of(self, ids: Tensor, mask: Tensor) -> Path:
        """Where the answer for one prompt, ids and mask (L,), is kept."""
        told = [_FORMAT, self.identity, str(self.dtype), ids.tolist(), mask.int().tolist()]
        name = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def whole(self, device: torch.device | None = None) -> nn.Module:
        """The encoder itself, opened when first asked for."""
        if self.inner is None:
            self.inner = self._open()
            if self.settle is not None:
                self.settle(self.inner)
            elif device is not None:
                self.inner.to(device)
        return self.inner

    @property
    def device(self) -> torch.device:
        """Where the encoder is, the CPU while it is not open."""
        found: Any = self.inner
        return torch.device("cpu") if found is None else found.device

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """All tensors of the encoder, which is opened for it."""
        found: Mapping[str, Tensor] = self.whole().state_dict()
        return found


def save_row(answer: Tensor, file: Path) -> None:
    """Write (L, E) as a file of the cache; warns where that cannot be, as the answer is there."""
    try:
        save_tensors({"embeddings": answer.cpu()}, file)
    except OutputError as error:
        warnings.warn(f"the prompt will be encoded anew next time: {error}", stacklevel=2)


def read_row(file: Path, shape: tuple[int, int]) -> Tensor | None:
    """(L, E) of a file of the cache, None where there is none; warns of one that cannot be read."""
    if not file.is_file():
        return None
    try:
        tensors = open_tensors(file)
        found = tensors["embeddings"].clone() if "embeddings" in tensors else None
    except WeightsError as error:
        warnings.warn(f"the prompt is encoded again: {error}", stacklevel=2)
        return None
    if found is None or found.shape != shape:
        warnings.warn(f"the prompt is encoded again: {file} is no answer to it", stacklevel=2)
        return None
    return found
