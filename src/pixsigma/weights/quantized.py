"""Weights on their way into 8 bits: read layer by layer, so that no full copy is ever made."""

import re
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from pixsigma.config import TransformerConfig
from pixsigma.models.quantized import LOW, SCALE, quantize_halves, quantize_rows, with_int8
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.weights.files import Spec, Tensors
from pixsigma.weights.load import load_into

INT8_LAYERS = r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj)|mlp\.fc[12])"
"""Linear layers of the transformer that are quantised; all others are small, and the time or the
picture goes through them. docs/performance.md has the table of what each of them costs."""

CPU_MODES = {"int8": r".*", "int8-fast": r".*\.cross_attn\.(kv_linear|proj)"}
"""Mode to the quantised layers whose weights have 16 bits, in two parts of 8."""


def fine_of(layers: Collection[str], mode: str) -> tuple[str, ...]:
    """Which of these layers have 16 bits in this mode."""
    return tuple(name for name in layers if re.fullmatch(CPU_MODES[mode], name))


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


def in_int8(tensors: Tensors, layers: Collection[str], fine: Collection[str] = ()) -> Tensors:
    """The same tensors with the weights of these layers as int8 and scales, made when asked for.

    The layers in `fine` have 16 bits: lower halves beside the upper ones.
    """
    specs = dict(tensors.specs)
    for name in layers:
        shape = specs[f"{name}.weight"].shape
        specs[f"{name}.weight"] = Spec(shape, torch.int8)
        specs[f"{name}{SCALE}"] = Spec(shape[:1], torch.float32)
        if name in fine:
            specs[f"{name}{LOW}"] = Spec(shape, torch.int8)
    wanted = frozenset(layers)
    pending: dict[str, Tensor] = {}

    def quantize(name: str) -> None:
        weight, names = tensors[f"{name}.weight"], [f"{name}.weight", name + LOW, name + SCALE]
        if name in fine:
            pending.update(zip(names, quantize_halves(weight), strict=True))
        else:
            pending.update(zip(names[::2], quantize_rows(weight), strict=True))

    def read(key: str) -> Tensor:
        name, _, kind = key.rpartition(".")
        if name not in wanted or kind not in ("weight", "weight_low", "weight_scale"):
            return tensors[key]
        if key not in pending:
            quantize(name)
        return pending.pop(key)

    return Tensors(specs, read, tensors.metadata)


def quantized_copy(
    model: PixArtTransformer, layers: Collection[str], fine: Collection[str] = ()
) -> PixArtTransformer:
    """The network with these layers in 8 bits, or 16 for `fine`; what stays in full precision is
    shared, not copied.

    Raises InputError for what is no linear layer.
    """
    tensors = in_int8(Tensors.of(model.state_dict()), layers, fine)
    return load_into(builder(model.config, layers, fine), tensors, dtype=torch.float32)


def builder(
    config: TransformerConfig, layers: Collection[str], fine: Collection[str] = ()
) -> Callable[[], PixArtTransformer]:
    """What builds a transformer with these layers in 8 bits, or 16."""

    def build() -> PixArtTransformer:
        model = PixArtTransformer(config)
        with_int8(model, layers, fine)
        return model

    return build
