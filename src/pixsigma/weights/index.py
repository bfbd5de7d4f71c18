"""`model_index.json`: what a model's folder says of itself, beside its parts."""

from pathlib import Path
from typing import Any

from pixsigma.errors import MismatchError, UnknownNameError
from pixsigma.given import is_number
from pixsigma.guidance_options import LARGEST_SCALE
from pixsigma.presets import GUIDANCE_SCALE, Variant
from pixsigma.weights.config_files import TRANSFORMER_CLASSES
from pixsigma.weights.files import read_json

INDEX = "model_index.json"

PIPELINES: dict[str, Variant] = {"PixArtSigmaPipeline": "sigma", "PixArtAlphaPipeline": "alpha"}
"""Classes that the index may name."""

GUIDANCE_KEY = "_guidance_scale"
"""Our own; diffusers passes over keys that begin with an underscore."""


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a model's folder, None where there is none; raises CorruptWeightsError."""
    file = folder / INDEX
    return read_json(file) if file.is_file() else None


def folder_variant(folder: Path) -> Variant | None:
    """Σ or α by the class in the index; None where there is none.

    Raises UnknownNameError for a pipeline of another family.
    """
    index = read_index(folder)
    if index is None:
        return None
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        raise UnknownNameError(
            f"a model folder is a {' or '.join(PIPELINES)}, {folder / INDEX} names {name!r}"
        )
    return PIPELINES[name]


def folder_guidance(folder: Path) -> float:
    """The guidance scale that suits a model: what its index says, else the published one.

    Raises MismatchError for what is no scale.
    """
    told = (read_index(folder) or {}).get(GUIDANCE_KEY, GUIDANCE_SCALE)
    if not (is_number(told) and 0 <= told <= LARGEST_SCALE):
        raise MismatchError(
            f"{GUIDANCE_KEY} in {folder / INDEX} must be a number from 0 to {LARGEST_SCALE:g}, "
            f"got {told!r}"
        )
    return float(told)


def index_json(
    variant: Variant, scheduler: str, *, text: bool, vae: bool, guidance_scale: float
) -> dict[str, Any]:
    """The index of a folder with these parts; `scheduler` is the class of diffusers."""
    told = {} if guidance_scale == GUIDANCE_SCALE else {GUIDANCE_KEY: guidance_scale}
    return {
        "_class_name": next(name for name, kind in PIPELINES.items() if kind == variant),
        **told,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "T5EncoderModel"] if text else [None, None],
        "tokenizer": ["transformers", "T5Tokenizer"] if text else [None, None],
        "transformer": ["diffusers", TRANSFORMER_CLASSES[0]],
        "vae": ["diffusers", "AutoencoderKL"] if vae else [None, None],
    }
