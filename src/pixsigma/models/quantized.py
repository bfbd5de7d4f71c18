"""Linear layers in 8 bits for the CPU: weights per channel, inputs as they come (W8A8).

Weights are whole numbers in [-127, 127] with a scale for each output (Jacob et al. 2018); inputs
are whole numbers in [0, 255] with one scale and zero for each picture, so that a picture does not
depend on what is drawn beside it. The products are oneDNN's, the sums and the bias float32.
"""

import math
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from pixsigma.errors import InputError
from pixsigma.models.embeddings import STRIP_BYTES, Mlp

SCALE = ".weight_scale"
"""What the name of a quantised layer's scales ends in."""

LARGEST = 127


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) to int8 (out, in) and float32 scales (out,): weight ≈ scale · int8."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / LARGEST
    return (weight / scale[:, None]).round().to(torch.int8), scale


def saturates() -> bool:
    """Whether this CPU's 8-bit products are added in 16 bits, as those before VNNI are.

    Two of 255 · 127 do not fit there; with weights of 7 bits nothing is lost.
    """
    return not getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


@cache
def supported() -> bool:
    """Whether this build of torch has oneDNN's 8-bit products, and this CPU runs them."""
    if not torch.backends.mkldnn.is_available():
        return False
    layer = Int8Linear(16, 16, bias=False)
    layer.weight.zero_()
    layer.weight_scale.fill_(1.0)
    try:
        return bool(layer(torch.ones(1, 16)).eq(0).all())
    except (AttributeError, RuntimeError):
        return False


class Int8Linear(nn.Module):
    """`nn.Linear` in 8 bits, for inference on the CPU."""

    weight: Tensor
    """(out, in) int8."""
    weight_scale: Tensor
    """(out,) float32."""
    bias: Tensor | None

    def __init__(self, num_in: int, num_out: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = num_in, num_out
        self.register_buffer("weight", torch.empty(num_out, num_in, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(num_out))
        self.register_buffer("bias", torch.empty(num_out) if bias else None)
        self._packed: tuple[Tensor, Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # what is packed belongs to this process and its CPU
        return {**self.__dict__, "_packed": None}

    def forward(self, x: Tensor, post: Literal["none", "gelu"] = "none") -> Tensor:
        """(…, in) to (…, out), in the dtype of `x`; pictures are the first of three axes."""
        if x.device.type != "cpu":
            raise InputError(
                "quantize='int8' computes on the CPU: load on cpu, or take a mode for GPUs"
            )
        pictures = x.unbind(0) if x.ndim > 2 else (x,)
        parts = [self.picture(each.flatten(0, -2), post) for each in pictures]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        return rows.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def picture(self, x: Tensor, post: str) -> Tensor:
        """(N, in) to float32 (N, out)."""
        low, high = (float(edge) for edge in torch.aminmax(x))
        low, high = min(low, 0.0), max(high, 0.0)
        if not math.isfinite(high - low):
            return x.new_full((len(x), self.out_features), math.nan, dtype=torch.float32)
        scale = max((high - low) / 255, 1e-12)
        zero = round(-low / scale)
        # the half rounds, since the cast cuts
        numbers = x.float().mul(1 / scale).add_(zero + 0.5).clamp_(0, 255).to(torch.uint8)
        packed, scales, zeros = self.packed()
        return torch.ops.onednn.qlinear_pointwise(
            numbers, scale, zero, packed, scales, zeros, self.bias,
            1.0, 0, torch.float32, post, [], "tanh" if post == "gelu" else "",
        )  # fmt: skip

    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights in the order that the kernel reads, their scales and zeros; made once."""
        if self._packed is None:
            weight, scale = self.weight, self.weight_scale
            if saturates():
                weight, scale = (weight / 2).round().to(torch.int8), scale * 2
            laid = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
            self._packed = laid, scale, torch.zeros(self.out_features, dtype=torch.int32)
        return self._packed


class QuantizedMlp(nn.Module):
    """An Mlp of which one layer or both are in 8 bits, picture by picture and strip by strip."""

    def __init__(self, fc1: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1 = fc1
        self.fc2 = fc2

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) to (B, N, out); the rows of a strip share a scale."""
        hidden: Any = self.fc1
        num_rows = STRIP_BYTES // (hidden.out_features * 4)
        strips = [rows for picture in x.flatten(0, -3) for rows in picture.split(num_rows)]
        return torch.cat([self.on_strip(rows) for rows in strips]).view(*x.shape[:-1], -1)

    def on_strip(self, x: Tensor) -> Tensor:
        """The same for a few rows of one picture."""
        if isinstance(self.fc1, Int8Linear):
            return self.fc2(self.fc1(x, "gelu"))
        return self.fc2(gelu(self.fc1(x), approximate="tanh"))


def with_int8(model: nn.Module, layers: Collection[str]) -> None:
    """Put empty 8-bit layers in place of these linear layers of `model`.

    Raises InputError where a name is not one of a linear layer.
    """
    for name in layers:
        parent, _, last = name.rpartition(".")
        try:
            linear = model.get_submodule(name)
        except AttributeError:
            linear = None
        if not isinstance(linear, nn.Linear):
            raise InputError(f"only linear layers are quantised, {name} is none of this network")
        layer = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None)
        setattr(model.get_submodule(parent), last, layer)
    for name, module in list(model.named_modules()):
        if isinstance(module, Mlp) and has_int8(module):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, QuantizedMlp(module.fc1, module.fc2))


def has_int8(model: nn.Module) -> bool:
    """Whether any layer is in 8 bits."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def quantized_layers(names: Iterable[str]) -> tuple[str, ...]:
    """The layers in 8 bits, by the names of a file's tensors."""
    return tuple(name.removesuffix(SCALE) for name in names if name.endswith(SCALE))
