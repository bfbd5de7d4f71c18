"""What a model says of itself beside its tensors: our metadata, and the index of its folder."""

import json
from collections.abc import Mapping
from pathlib import Path

from pixsigma.config import TransformerConfig
from pixsigma.presets import Variant
from pixsigma.weights import config_files
from pixsigma.weights.detect import Detected
from pixsigma.weights.files import Tensors, parsed_json
from pixsigma.weights.index import folder_variant
from pixsigma.weights.keymaps import transformer_names

CONFIG_KEY, VARIANT_KEY = "pixsigma.transformer", "pixsigma.variant"
"""Metadata that our files carry."""


def description(config: TransformerConfig, variant: Variant) -> dict[str, str]:
    """Metadata for a transformer's file, so that nothing needs to be guessed from shapes."""
    return {CONFIG_KEY: json.dumps(config_files.transformer_json(config)), VARIANT_KEY: variant}


def described(tensors: Tensors) -> Detected | None:
    """What the metadata of a file of ours tells."""
    told, variant = tensors.metadata.get(CONFIG_KEY), _variant_in(tensors.metadata)
    if not told or variant is None:
        return None
    config = config_files.transformer_config(parsed_json(told, f"the metadata {CONFIG_KEY}"))
    return Detected(config=config, variant=variant, keymap=transformer_names(tensors))


def told_variant(path: Path, tensors: Tensors) -> Variant | None:
    """What a folder says: the index in it or, of a part alone, beside it; else our metadata."""
    indexed = folder_variant(path)
    if indexed is None and path.name == "transformer":
        indexed = folder_variant(path.parent)
    return indexed or _variant_in(tensors.metadata)


def _variant_in(metadata: Mapping[str, str]) -> Variant | None:
    told = metadata.get(VARIANT_KEY)
    return "alpha" if told == "alpha" else "sigma" if told else None
