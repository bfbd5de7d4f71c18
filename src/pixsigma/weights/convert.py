"""A transformer from one set of names to another, checked tensor by tensor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pixsigma.errors import InputError, MismatchError, OutputError
from pixsigma.weights import config_files, folder
from pixsigma.weights.detect import Detected
from pixsigma.weights.files import Tensors, save_tensors, write_json
from pixsigma.weights.keymaps import DIFFUSERS
from pixsigma.weights.load import check_fit
from pixsigma.weights.locate import FileChoice
from pixsigma.weights.told import description

Layout: TypeAlias = Literal["diffusers", "pth", "single"]

SUFFIXES: dict[Layout, str] = {"diffusers": "", "pth": ".pth", "single": ".safetensors"}
"""What the path to write must end in; a folder has none."""


def convert(
    source: str | Path,
    target: str | Path,
    to: Layout = "diffusers",
    *,
    dtype: torch.dtype | None = None,
    resolution: int | None = None,
    variant: Literal["sigma", "alpha"] | None = None,
) -> Path:
    """Write a transformer as a folder, the authors' `.pth` or one `.safetensors`; return the path.

    `source` is a model's folder, a transformer's folder or a file. `diffusers` writes
    `target/transformer/`; the other two have the authors' names, which ComfyUI reads as well.
    `dtype` casts. Every tensor is read back and compared. Raises WeightsError, InputError or
    OutputError.
    """
    source, target = Path(source), Path(target)
    _check_target(source, target, to)
    opened = folder.open_transformer(source, resolution=resolution, variant=variant)
    if opened.int8_layers:
        raise MismatchError(f"{source} is in 8 bits and stays so: convert the model it was made of")
    config, detected = opened.config, opened.detected
    ours = _cast(detected.keymap.to_ours(opened.tensors), dtype)
    check_fit(opened.expected(), ours.specs, detected.keymap)
    metadata = description(config, detected.variant)
    if to == "diffusers":
        part = target / "transformer"
        name = FileChoice().names("transformer", ".safetensors")[0]
        save_tensors(DIFFUSERS.to_theirs(ours), part / name, metadata=metadata)
        write_json(part / "config.json", config_files.transformer_json(config))
    else:
        save_tensors(ours, target, metadata=metadata)
    _verify(ours, target, detected)
    return target


def _check_target(source: Path, target: Path, to: Layout) -> None:
    if to not in SUFFIXES:
        raise InputError(f"a layout is one of {', '.join(SUFFIXES)}, got {to!r}")
    if to != "diffusers" and target.suffix != SUFFIXES[to]:
        raise InputError(f"the layout {to} is written to a {SUFFIXES[to]} file, got {target.name}")
    if to == "diffusers" and (
        target.is_file() or (target.suffix in SUFFIXES.values() and target.suffix)
    ):
        raise InputError(f"the layout diffusers is written to a folder, got {target}")
    if source.resolve() in (target.resolve(), (target / "transformer").resolve()):
        raise InputError(f"source and target must differ, both are {target}")


def _cast(tensors: Tensors, dtype: torch.dtype | None) -> Tensors:
    """The same, cast as they are read."""
    if dtype is None:
        return tensors
    return Tensors(
        {key: type(spec)(spec.shape, dtype) for key, spec in tensors.specs.items()},
        lambda key: tensors[key].to(dtype),
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every bit: a NaN equals itself here, as it must."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(x.contiguous().flatten().view(torch.uint8) for x in (a, b)))


def _verify(ours: Mapping[str, Tensor], target: Path, meant: Detected) -> None:
    """Raise OutputError unless what was written reads back as what was meant."""
    written = folder.open_transformer(target)
    back = written.detected.keymap.to_ours(written.tensors)
    differs = [key for key in ours if key not in back or not _same_bits(ours[key], back[key])]
    same = (written.config, written.detected.variant) == (meant.config, meant.variant)
    if differs or len(back) != len(ours) or not same:
        told = f"{len(differs)} tensors, {differs[:3]}" if differs else "what the model is"
        raise OutputError(f"{target} does not read back as it was written: {told}; try again")
