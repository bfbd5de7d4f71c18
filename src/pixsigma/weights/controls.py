"""ControlNets' files: ours, and the authors' `.pth`, read for the transformer that they are for.

A file has the tensors of the copy, `controlnet.…`. The authors' has the base beside it,
`base_model.…` (`state_dict` of `ControlPixArtHalf`), ours of the base only what embeds patches, to
know it again. An image prompt's file has `image_prompt.…` in place of the copy.
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
from pixsigma.config import TransformerConfig
from pixsigma.errors import MismatchError, MissingWeightsError
from pixsigma.given import expanded
from pixsigma.hints import PICTURE
from pixsigma.models.controlled import Network
from pixsigma.models.controlnet import ControlNet
from pixsigma.models.image_prompt import ImagePrompt
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.presets import Variant
from pixsigma.weights.detect import variant_of
from pixsigma.weights.files import Spec, Tensors, open_tensors, parsed_json, save_tensors
from pixsigma.weights.load import load_into
from pixsigma.weights.renaming import KeyMap

FILE = "controlnet.safetensors"
"""What we name the file in a folder."""

METADATA = "pixsigma.control"
"""The key of our metadata: JSON with `kind` and `variant`."""

EMBEDDER = "base_model.x_embedder.proj.weight"
"""What tells the base that a ControlNet was trained beside."""

FAR = 0.5
"""Relative distance between embedders of patches from which they belong to different models."""

PROMPT = "image_prompt."
"""What the names of an image prompt's tensors begin with, where a ControlNet's have their own."""


@dataclass(frozen=True, kw_only=True)
class ControlReport:
    """What the file of a ControlNet or an image prompt is."""

    path: str
    kind: str | None
    """What it follows, such as edges; None where the file does not say."""
    num_copied: int
    """Blocks of the base that it copies; 0 for an image prompt."""
    num_tokens: int
    """Tokens that an image prompt makes of a picture; 0 for a ControlNet."""
    num_parameters: int
    whose: str
    """pixsigma, or the authors'."""


def control_file(path: Path | str) -> Path:
    """The file of a ControlNet's path, which may be its folder or that of a training run.

    Raises MissingWeightsError.
    """
    path = expanded(path)
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
) -> tuple[Network, ControlReport]:
    """Read a ControlNet or an image prompt for this transformer, ready for inference.

    `kind` is what it is to follow; `dtype` None keeps the file's. Raises MissingWeightsError,
    CorruptWeightsError, UnsafeWeightsError, and MismatchError where it is for another model or
    another kind of hint.
    """
    file = control_file(path)
    tensors = open_tensors(file)
    told = _told(file, tensors.metadata)
    own = _own(file, tensors)
    specs = {key: tensors.specs[name] for key, name in own.items()}
    outline = _outline(specs)
    _check_kind(file, PICTURE if outline.num_tokens else told.get("kind"), kind)
    _check_width(file, specs, base)
    _check_variant(file, tensors, told.get("variant"), base, variant)
    if outline.num_copied >= base.config.num_layers:
        raise MismatchError(
            f"{file} copies {outline.num_copied} blocks, and a base needs more than that; this "
            f"model has {base.config.num_layers}"
        )
    given = Tensors(specs, lambda key: tensors[own[key]])
    network = load_into(partial(outline.network, base.config), given, dtype=dtype)
    _check_base(file, tensors, base)
    return network, ControlReport(
        path=str(file),
        kind=told.get("kind"),
        num_copied=outline.num_copied,
        num_tokens=outline.num_tokens,
        num_parameters=sum(spec.num_elements for spec in specs.values()),
        whose="pixsigma" if told else "the authors'",
    )


@dataclass(frozen=True)
class Outline:
    """What a file's network is, told by its names and shapes alone."""

    num_copied: int = 0
    """Blocks of a ControlNet; 0 for an image prompt."""
    num_tokens: int = 0
    num_blocks: int = 0
    """Tokens and blocks of an image prompt; 0 for a ControlNet."""

    def network(self, config: TransformerConfig) -> Network:
        """The network without its weights."""
        if self.num_copied:
            return ControlNet(config, self.num_copied)
        return ImagePrompt(config, self.num_tokens, self.num_blocks)


def outline_of(path: Path | str) -> Outline:
    """The outline of a file; raises WeightsError."""
    file = control_file(path)
    tensors = open_tensors(file)
    return _outline({key: tensors.specs[name] for key, name in _own(file, tensors).items()})


def _outline(specs: Mapping[str, Spec]) -> Outline:
    if (queries := specs.get("queries")) is not None:
        if len(queries.shape) != 2:
            raise MismatchError(f"the queries of an image prompt are a matrix, got {queries.shape}")
        return Outline(num_tokens=queries.shape[0], num_blocks=_num_of("blocks", specs))
    return Outline(num_copied=_num_of("controlnet", specs))


def _num_of(parts: str, names: Iterable[str]) -> int:
    """How many parts of a list there are; raises MismatchError where one is missing."""
    places = [re.match(rf"{parts}\.(\d+)\.", key) for key in names]
    numbers = {int(place[1]) for place in places if place}
    if not numbers or max(numbers) + 1 != len(numbers):
        told = sorted(numbers)[-3:]
        raise MismatchError(f"{parts} must be numbered from 0 without a gap, the last are {told}")
    return len(numbers)


def save_control(
    weights: Mapping[str, Tensor],
    base: PixArtTransformer,
    path: Path | str,
    *,
    kind: str,
    variant: Variant,
) -> Path:
    """Write a network's `state_dict` into a file, or a folder's file; raises OutputError."""
    path = Path(path)
    if "queries" in weights:
        weights = {PROMPT + key: value for key, value in weights.items()}
    file = path if path.suffix == ".safetensors" else path / FILE
    told = {"kind": kind, "variant": variant, "software": f"pixsigma {__version__}"}
    embedder = {EMBEDDER: base.x_embedder.proj.weight.detach()}
    tensors = {key: value.detach().cpu() for key, value in {**weights, **embedder}.items()}
    save_tensors(tensors, file, metadata={METADATA: json.dumps(told)})
    return file


def _own(file: Path, tensors: Tensors) -> dict[str, str]:
    """Our names of the copy's tensors to those of the file; what is of the base is left there."""
    plain = KeyMap(name="ours", aliases=((r"^module\.", ""),)).canonical(tensors.specs)
    ours = ("controlnet.", PROMPT)
    own = {key.removeprefix(PROMPT): name for key, name in plain.items() if key.startswith(ours)}
    strange = [key for key in plain if not key.startswith((*ours, "base_model."))]
    if not own or strange:
        what = f"{len(strange)} others such as {strange[0]}" if strange else "none but the base's"
        raise MismatchError(
            f"a ControlNet for PixArt has tensors controlnet.0.copied_block.… and so on, {file} "
            f"has {len(own)} of them and {what}; those for other models do not fit"
        )
    return own


def _told(file: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    told = parsed_json(metadata.get(METADATA, "{}"), f"the metadata of {file}")
    return {str(key): str(value) for key, value in told.items()}


def _check_kind(file: Path, told: str | None, asked: str | None) -> None:
    if told and asked and told != asked:
        raise MismatchError(f"{file} follows {told}, it was asked to follow {asked}")
    if asked == PICTURE and told is None:
        raise MismatchError(
            f"{file} is a ControlNet, and hints of kind {PICTURE} are image prompts"
        )


def _check_width(file: Path, specs: Mapping[str, Spec], base: PixArtTransformer) -> None:
    wide = specs.get("controlnet.0.after_proj.weight", specs.get("queries"))
    if wide is not None and wide.shape[1:2] != (base.config.width,):
        raise MismatchError(
            f"{file} is for a model of width {', '.join(map(str, wide.shape[1:2])) or 'none'}, "
            f"this one has {base.config.width}"
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
    if theirs.ndim != 4:
        raise MismatchError(f"{EMBEDDER} in {file} must have four axes, it has {theirs.ndim}")
    if theirs.shape != ours.shape:
        raise MismatchError(
            f"{file} reads latents of {theirs.shape[1]} channels in patches of {theirs.shape[2]}, "
            f"this model of {ours.shape[1]} in patches of {ours.shape[2]}"
        )
    distance = float((theirs - ours).norm() / ours.norm())
    if not distance <= FAR:  # NaN is far too
        raise MismatchError(
            f"{file} was trained beside other weights: what embeds patches there differs from this "
            f"model's by {distance:.0%}, a fine-tuned copy by far less; load the base it is for"
        )
