"""ControlNets' files: ours, and the authors' `.pth`, read for the transformer that they are for.

A file has the tensors of the copy, `controlnet.…`. The authors' has the base beside it,
`base_model.…` (`state_dict` of `ControlPixArtHalf`), ours of the base only what embeds patches, to
know it again.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pixsigma._version import __version__
from pixsigma.errors import CorruptWeightsError, MismatchError, MissingWeightsError
from pixsigma.models.controlnet import ControlNet
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.presets import Variant
from pixsigma.weights.detect import variant_of
from pixsigma.weights.files import Spec, Tensors, open_tensors, save_tensors
from pixsigma.weights.load import load_into

FILE = "controlnet.safetensors"
"""What we name the file in a folder."""

METADATA = "pixsigma.control"
"""The key of our metadata: JSON with `kind` and `variant`."""

EMBEDDER = "base_model.x_embedder.proj.weight"
"""What tells the base that a ControlNet was trained beside."""

FAR = 0.5
"""Relative distance between embedders of patches from which they belong to different models."""


@dataclass(frozen=True, kw_only=True)
class ControlReport:
    """What a ControlNet's file is."""

    path: str
    kind: str | None
    """What it follows, such as edges; None where the file does not say."""
    num_copied: int
    """Blocks of the base that it copies."""
    num_parameters: int
    whose: str
    """pixsigma, or the authors'."""


def control_file(path: Path | str) -> Path:
    """The file of a ControlNet's path, which may be its folder or that of a training run.

    Raises MissingWeightsError.
    """
    path = Path(path).expanduser()
    if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for names that are too long
        return path
    for found in (path / FILE, path / "control" / FILE):
        if os.path.isfile(found):  # noqa: PTH113
            return found
    raise MissingWeightsError(
        f"a ControlNet is a file, or a folder with {FILE}; there is none at {path}"
    )


def read_control(
    path: Path | str,
    base: PixArtTransformer,
    variant: Variant,
    *,
    kind: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[ControlNet, ControlReport]:
    """Read a ControlNet for this transformer, ready for inference; `dtype` None keeps the file's.

    `kind` is what it is to follow. Raises MissingWeightsError, CorruptWeightsError,
    UnsafeWeightsError, and MismatchError where it is for another model or another kind of hint.
    """
    file = control_file(path)
    tensors = open_tensors(file)
    told = _told(file, tensors.metadata)
    own = _own(file, tensors)
    _check_kind(file, told.get("kind"), kind)
    specs = {key: tensors.specs[name] for key, name in own.items()}
    _check_width(file, specs, base)
    _check_variant(file, tensors, told.get("variant"), base, variant)
    num = _num_copied(own)
    if num >= base.config.num_layers:
        raise MismatchError(
            f"{file} copies {num} blocks, and a base needs more than that; this model has "
            f"{base.config.num_layers}"
        )
    given = Tensors(specs, lambda key: tensors[own[key]])
    network = load_into(partial(ControlNet, base.config, num), given, dtype=dtype)
    _check_base(file, tensors, base)
    return network, ControlReport(
        path=str(file),
        kind=told.get("kind"),
        num_copied=num,
        num_parameters=sum(spec.num_elements for spec in specs.values()),
        whose="pixsigma" if told else "the authors'",
    )


def copied_blocks(path: Path | str) -> int:
    """How many blocks a ControlNet's file copies, told by its names alone; raises WeightsError."""
    file = control_file(path)
    return _num_copied(_own(file, open_tensors(file)))


def save_control(
    weights: Mapping[str, Tensor],
    base: PixArtTransformer,
    path: Path | str,
    *,
    kind: str,
    variant: Variant,
) -> Path:
    """Write a ControlNet's `state_dict` into a file, or a folder's file; raises OutputError."""
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / FILE
    told = {"kind": kind, "variant": variant, "software": f"pixsigma {__version__}"}
    embedder = {EMBEDDER: base.x_embedder.proj.weight.detach()}
    tensors = {key: value.detach().cpu() for key, value in {**weights, **embedder}.items()}
    save_tensors(tensors, file, metadata={METADATA: json.dumps(told)})
    return file


def _own(file: Path, tensors: Tensors) -> dict[str, str]:
    """Our names of the copy's tensors to those of the file; what is of the base is left there."""
    plain = {re.sub(r"^module\.", "", key): key for key in tensors.specs}
    own = {key: name for key, name in plain.items() if key.startswith("controlnet.")}
    strange = [key for key in plain if key not in own and not key.startswith("base_model.")]
    if not own or strange:
        what = f"{len(strange)} others such as {strange[0]}" if strange else "none but the base's"
        raise MismatchError(
            f"a ControlNet for PixArt has tensors controlnet.0.copied_block.… and so on, {file} "
            f"has {len(own)} of them and {what}; those for other models do not fit"
        )
    return own


def _num_copied(own: Iterable[str]) -> int:
    places = [re.match(r"controlnet\.(\d+)\.", key) for key in own]
    return 1 + max(int(place[1]) for place in places if place)


def _told(file: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        told = json.loads(metadata.get(METADATA, "{}"))
        return {str(key): str(value) for key, value in told.items()}
    except (ValueError, AttributeError) as error:
        raise CorruptWeightsError(f"the metadata of {file} must be JSON: {error}") from error


def _check_kind(file: Path, told: str | None, asked: str | None) -> None:
    if told and asked and told != asked:
        raise MismatchError(f"{file} follows {told}, it was asked to follow {asked}")


def _check_width(file: Path, specs: Mapping[str, Spec], base: PixArtTransformer) -> None:
    link = specs.get("controlnet.0.after_proj.weight")
    if link is not None and link.shape[0] != base.config.width:
        raise MismatchError(
            f"{file} is for a model of width {link.shape[0]}, this one has {base.config.width}"
        )


def _check_variant(
    file: Path, tensors: Tensors, told: str | None, base: PixArtTransformer, variant: Variant
) -> None:
    """Raise MismatchError where the file tells that it is for another family."""
    beside = {
        key.removeprefix("module.").removeprefix("base_model."): spec
        for key, spec in tensors.specs.items()
    }
    if told is None and "y_embedder.y_embedding" in beside:
        told = variant_of(beside, file.name, base.config)
    if told and told != variant:
        names = {"alpha": "PixArt-α", "sigma": "PixArt-Σ"}
        raise MismatchError(
            f"{file} was trained for {names.get(told, told)}, this model is {names[variant]}"
        )


def _check_base(file: Path, tensors: Tensors, base: PixArtTransformer) -> None:
    """Raise MismatchError where what the file has of its base is not of this one."""
    name = next((key for key in (EMBEDDER, f"module.{EMBEDDER}") if key in tensors.specs), None)
    if name is None:
        return
    theirs, ours = tensors[name].float(), base.x_embedder.proj.weight.detach().cpu().float()
    if theirs.shape != ours.shape:
        raise MismatchError(
            f"{file} reads latents of {theirs.shape[1]} channels in patches of {theirs.shape[2]}, "
            f"this model of {ours.shape[1]} in patches of {ours.shape[2]}"
        )
    distance = float((theirs - ours).norm() / ours.norm())
    if distance > FAR:
        raise MismatchError(
            f"{file} was trained beside other weights: what embeds patches there differs from this "
            f"model's by {distance:.0%}, a fine-tuned copy by far less; load the base it is for"
        )
