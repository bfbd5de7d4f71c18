"""Weights on their way into 8 bits: read layer by layer, so that no full copy is ever made."""

import re
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from pixsigma.config import TransformerConfig
from pixsigma.models.quantized import SCALE, quantize_rows, with_int8
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.weights.files import Spec, Tensors
from pixsigma.weights.load import load_into

INT8_LAYERS = r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj)|mlp\.fc[12])"
"""Linear layers of the transformer that are quantised; all others are small, and the time or the
picture goes through them. docs/performance.md has the table of what each of them costs."""


def int8_layers(names: Collection[str], keep: str | None = None) -> tuple[str, ...]:
    """Which layers to quantise, by the names of all tensors; `keep` is a pattern of some to leave.

    What is quantised already is not among them.
    """
    found = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    return tuple(
        name
        for name in found
        if re.fullmatch(INT8_LAYERS, name)
        and not (keep and re.fullmatch(keep, name))
        and name + SCALE not in names
    )


def in_int8(tensors: Tensors, layers: Collection[str]) -> Tensors:
    """The same tensors with the weights of these layers as int8 and scales, made when asked for."""
    specs = dict(tensors.specs)
    for name in layers:
        shape = specs[f"{name}.weight"].shape
        specs[f"{name}.weight"] = Spec(shape, torch.int8)
        specs[f"{name}{SCALE}"] = Spec(shape[:1], torch.float32)
    wanted = frozenset(layers)
    pending: dict[str, Tensor] = {}

    def read(key: str) -> Tensor:
        name, _, kind = key.rpartition(".")
        if name not in wanted or kind not in ("weight", "weight_scale"):
            return tensors[key]
        if key not in pending:
            pending[f"{name}.weight"], pending[name + SCALE] = quantize_rows(
                tensors[f"{name}.weight"]
            )
        return pending.pop(key)

    return Tensors(specs, read, tensors.metadata)


def quantized_copy(model: PixArtTransformer, layers: Collection[str]) -> PixArtTransformer:
    """The network with these layers in 8 bits; what stays in full precision is shared, not copied.

    Raises InputError for what is no linear layer.
    """
    tensors = in_int8(Tensors.of(model.state_dict()), layers)
    return load_into(builder(model.config, layers), tensors, dtype=torch.float32)


def builder(config: TransformerConfig, layers: Collection[str]) -> Callable[[], PixArtTransformer]:
    """What builds a transformer with these layers in 8 bits."""

    def build() -> PixArtTransformer:
        model = PixArtTransformer(config)
        with_int8(model, layers)
        return model

    return build
