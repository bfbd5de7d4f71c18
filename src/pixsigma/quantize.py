"""Fewer bits for the transformer: which modes there are, where each runs, and how to get there.

`int8` and `int8-fast` are our own, for CPUs (`models/quantized.py`). The others are torchao's, for
GPUs.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pixsigma.errors import InputError, MissingExtraError, UnknownNameError
from pixsigma.models.quantized import by_others, has_int8, supported
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.weights.files import Tensors
from pixsigma.weights.quantized import (
    CPU_MODES,
    INT8_LAYERS,
    fine_of,
    int8_layers,
    quantized_copy,
)

GPU_MODES = {
    "int8-weights": "Int8WeightOnlyConfig",
    "int4-weights": "Int4WeightOnlyConfig",
    "fp8-weights": "Float8WeightOnlyConfig",
    "int8-dynamic": "Int8DynamicActivationInt8WeightConfig",
}
"""Mode to its config in `torchao.quantization`."""

MODES = (*CPU_MODES, *GPU_MODES)


def check_mode(mode: str | None, device: torch.device | None = None) -> None:
    """Raise UnknownNameError, MissingExtraError or InputError where a mode cannot be had here.

    `device` is where the transformer is to compute, None where that is not settled yet.
    """
    if mode is None:
        return
    if mode not in MODES:
        raise UnknownNameError(f"quantize must be one of {', '.join(MODES)}, got {mode!r}")
    if mode in CPU_MODES:
        if device is not None and device.type != "cpu":
            raise InputError(
                f"quantize={mode!r} computes on the CPU, the device is {device}: "
                f"take --device cpu, or one of {', '.join(GPU_MODES)}"
            )
        if not supported():
            raise InputError(
                f"quantize={mode!r} needs 8-bit products of oneDNN, which this torch "
                "or this CPU is without"
            )
        return
    if importlib.util.find_spec("torchao") is None:
        raise MissingExtraError(f"quantize={mode!r} needs torchao: pip install torchao")
    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        raise InputError(f"quantize={mode!r} needs a CUDA device; on a CPU take 'int8'")


def quantized(
    model: PixArtTransformer, mode: str = "int8", *, keep: str | None = None
) -> PixArtTransformer:
    """The transformer in this mode; `keep` is a pattern of layers that stay as they are.

    For `int8` and `int8-fast` a new network that shares what is not quantised; else `model`
    itself, on the GPU and changed. Raises what `check_mode` raises.
    """
    check_mode(mode)
    if mode in CPU_MODES:
        layers = int8_layers(Tensors.of(model.state_dict()), keep)
        return quantized_copy(model, layers, fine_of(layers, mode)) if layers else model
    return by_torchao(model, mode, keep)


def by_torchao(
    model: PixArtTransformer, mode: str, keep: str | None, device: str = "cuda"
) -> PixArtTransformer:
    """Quantise in place by torchao. This was never run on a GPU: see docs/performance.md.

    Raises MissingExtraError where torchao lacks the mode, or a package that the mode needs;
    InputError where it passes over every layer.
    """
    import torchao.quantization as torchao

    config: Callable[[], Any] | None = getattr(torchao, GPU_MODES[mode], None)
    if config is None:
        raise MissingExtraError(f"quantize={mode!r} needs a newer torchao: it has no such mode")
    try:
        torchao.quantize_(model.to(device), config(), filter_fn=_chosen(keep))
    except ImportError as error:
        raise MissingExtraError(f"quantize={mode!r}, torchao says: {error}") from error
    if not is_quantized(model):
        raise InputError(
            f"quantize={mode!r} takes no layer of this model, whose widths are no multiples of the "
            "mode's group: choose another mode"
        )
    return model


def _chosen(keep: str | None) -> Callable[[nn.Module, str], bool]:
    import re

    def chosen(module: nn.Module, name: str) -> bool:
        left = keep is not None and re.fullmatch(keep, name)
        return bool(re.fullmatch(INT8_LAYERS, name)) and not left

    return chosen


def is_quantized(model: nn.Module) -> bool:
    """Whether weights of the network are no longer numbers that can be added to."""
    return has_int8(model) or by_others(model)
