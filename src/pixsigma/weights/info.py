"""What a weights file or a model's folder holds, told from headers: no tensor is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixsigma.config import KVCompression
from pixsigma.errors import MissingWeightsError
from pixsigma.presets import Variant
from pixsigma.weights.files import Tensors, open_tensors
from pixsigma.weights.folder import latent_pixels, open_transformer
from pixsigma.weights.keymaps import T5
from pixsigma.weights.locate import FileChoice, find_weights


@dataclass(frozen=True, kw_only=True)
class PartInfo:
    """One network of a model."""

    name: str
    num_parameters: int
    num_bytes: int
    """In memory, as stored."""
    precision: str
    """`float16`; several types from the most frequent to the least, with commas."""
    path: Path


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """A model at a glance."""

    path: Path
    kind: Literal["folder", "file"]
    names: str
    """Whose names the tensors of the transformer have."""
    variant: Variant
    resolution: int
    """Side in pixels of the pictures that it was trained on."""
    num_layers: int
    width: int
    num_attention_heads: int
    qk_norm: bool
    kv_compression: KVCompression | None
    parts: tuple[PartInfo, ...]
    """The transformer first."""
    bytes_on_disk: int
    bytes_in_memory: int
    """All weights as stored and, roughly, the largest step of one picture at `resolution`."""

    @property
    def num_parameters(self) -> int:
        """Of the transformer."""
        return self.parts[0].num_parameters

    @property
    def precision(self) -> str:
        """Of the transformer."""
        return self.parts[0].precision


def describe(
    path: str | Path,
    *,
    file_variant: str | None = None,
    resolution: int | None = None,
    variant: Variant | None = None,
) -> WeightsInfo:
    """Describe a folder or a file; `resolution` and `variant` are hints for files that do not tell.

    Raises WeightsError.
    """
    path, choice = Path(path), FileChoice(variant=file_variant)
    opened = open_transformer(path, choice=choice, resolution=resolution, variant=variant)
    detected, config = opened.detected, opened.config
    side = config.sample_size * latent_pixels(path)
    kept = detected.keymap.to_ours(opened.tensors)
    file = find_weights(_own_folder(path), "transformer", choice) if path.is_dir() else path
    parts = [_part("transformer", kept, file), *_other_parts(path, choice)]
    return WeightsInfo(
        path=path,
        kind="folder" if path.is_dir() else "file",
        names=detected.keymap.name,
        variant=detected.variant,
        resolution=side,
        num_layers=config.num_layers,
        width=config.width,
        num_attention_heads=config.num_attention_heads,
        qk_norm=config.qk_norm,
        kv_compression=config.kv_compression,
        parts=tuple(parts),
        bytes_on_disk=_size_on_disk(path),
        bytes_in_memory=sum(p.num_bytes for p in parts) + _activations(side),
    )


def _own_folder(path: Path) -> Path:
    return path / "transformer" if (path / "transformer").is_dir() else path


def _other_parts(path: Path, choice: FileChoice) -> list[PartInfo]:
    found = []
    for name in ("text_encoder", "vae"):
        if (path / name / "config.json").is_file():
            try:
                file = find_weights(path / name, name, choice)
            except MissingWeightsError:  # a config alone, as it comes with the transformer
                continue
            tensors = open_tensors(file)
            found.append(
                _part(name, T5.to_ours(tensors) if name == "text_encoder" else tensors, file)
            )
    return found


def _part(name: str, tensors: Tensors, file: Path) -> PartInfo:
    counts: dict[str, int] = {}
    for spec in tensors.specs.values():
        kind = str(spec.dtype).removeprefix("torch.")
        counts[kind] = counts.get(kind, 0) + spec.num_elements
    return PartInfo(
        name=name,
        num_parameters=sum(counts.values()),
        num_bytes=tensors.num_bytes,
        precision=", ".join(sorted(counts, key=lambda kind: -counts[kind])),
        path=file,
    )


def _size_on_disk(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _activations(resolution: int) -> int:
    """The widest maps of the decoder: two of 256 channels at full size, in fp32."""
    return 2 * 256 * resolution * resolution * 4
