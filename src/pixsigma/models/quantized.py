"""Linear layers by 8-bit products for the CPU: weights per channel, inputs as they come.

`Int8Linear`: weights are whole numbers in [-127, 127] with a scale for each output (Jacob et al.
2018); inputs are whole numbers in [0, 255] with one scale and zero for each picture, so that a
picture does not depend on what is drawn beside it. `Int16Linear`: weights have 16 bits, in two
parts of 8; one bf16 product where the CPU has those, else three of 8 bits make one. The products
are oneDNN's, the sums and the bias float32.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pixsigma.errors import InputError
from pixsigma.models.embeddings import STRIP_BYTES, Mlp
from pixsigma.models.products import (
    Post,
    cpu_has,
    has_bfloat16,
    multiplies_in_bfloat16,
    onednn_linear,
    strip,
)

gelu_ = torch.ops.aten.gelu_

SCALE = ".weight_scale"
"""What the name of a quantised layer's scales ends in."""

LOW = ".weight_low"
"""What the name of the lower halves of a layer's 16-bit weights ends in."""

ONCE = "kv_linear"
"""The layer that reads the text, once a picture: there is no time to be saved by coarse products,
and their error would be in every step."""

LARGEST = 127
LARGEST_16 = 127 * 256 + 127
"""The largest number of which both halves, the lower one in [-128, 127], have 8 bits."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) to int8 (out, in) and float32 scales (out,): weight ≈ scale · int8."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / LARGEST
    return (weight / scale[:, None]).round().to(torch.int8), scale


def quantize_halves(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(out, in) to int8 halves (out, in) and float32 scales (out,).

    The weight is nearly scale · (high + low / 256).
    """
    weight = weight.float()
    unit = weight.abs().amax(dim=1).clamp(min=1e-12) / LARGEST_16
    numbers = (weight / unit[:, None]).round_()
    high = numbers.add(128).div_(256).floor_()
    low = numbers.sub_(high, alpha=256)
    return high.to(torch.int8), low.to(torch.int8), unit * 256


def saturates() -> bool:
    """Whether this CPU's 8-bit products are added in 16 bits, as those before VNNI are.

    Two of 255 · 127 do not fit there; with weights of 7 bits nothing is lost.
    """
    return not cpu_has("vnni")


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
        self._packed: Any = None

    @property
    def coarse(self) -> bool:
        """Whether bf16 is exact enough for what is made of the answers, and this CPU has it."""
        return has_bfloat16(self.weight.device)

    def __getstate__(self) -> dict[str, Any]:
        # what is packed belongs to this process and its CPU
        return {**self.__dict__, "_packed": None}

    def forward(self, x: Tensor, post: Post = "none") -> Tensor:
        """(…, in) to (…, out), in the dtype of `x`; pictures are the first of three axes."""
        if x.device.type != "cpu":
            raise InputError(
                "layers in 8 bits compute on the CPU: load on cpu, or take a mode for GPUs"
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

    def whole(self) -> Tensor:
        """(out, in) float32: what the weights stand for."""
        return self.weight * self.weight_scale[:, None]

    def packed(self) -> tuple[Tensor, ...]:
        """Weights in the order that the kernel reads, their scales and zeros; made once."""
        if self._packed is None:
            weight, scale = self.weight, self.weight_scale
            if saturates():
                weight, scale = (weight / 2).round().to(torch.int8), scale * 2
            laid = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
            self._packed = laid, scale, torch.zeros(self.out_features, dtype=torch.int32)
        return self._packed


class Int16Linear(Int8Linear):
    """`nn.Linear` with weights of 16 bits, in two halves of 8.

    One product is bf16 where the CPU has those: two thirds of the time of three of 8 bits, and
    within a few thousandths of float32. Elsewhere three of 8 bits keep all but its lowest bits:
    with x = 256 a + b and w = 256 c + d the product is 65536 ac + 256 (bc + ad); bd is below what
    rounding loses. The bytes of x lie as b, a, b, a, ..., so weights that lie as c, d, c, d, ...
    give bc + ad in one product.
    """

    weight_low: Tensor
    """(out, in) int8, in units of scale / 256."""

    @classmethod
    def holding(cls, weight: Tensor, bias: Tensor | None, once: bool = False) -> "Int16Linear":
        """A layer of these weights (out, in), rounded."""
        layer = cls(weight.shape[1], weight.shape[0], bias is not None, once)
        layer.weight, layer.weight_low, layer.weight_scale = quantize_halves(weight)
        layer.bias = bias
        return layer.eval()

    def __init__(self, num_in: int, num_out: int, bias: bool = True, once: bool = False) -> None:
        """With `once` its products are the finer ones everywhere."""
        super().__init__(num_in, num_out, bias)
        self.once = once
        self.register_buffer("weight_low", torch.empty(num_out, num_in, dtype=torch.int8))

    @property
    def in_bfloat16(self) -> bool:
        """Whether one bf16 product is all that is done."""
        return not self.once and has_bfloat16(self.weight.device)

    @property
    def coarse(self) -> bool:
        """The same: three products of 8 bits are finer."""
        return self.in_bfloat16

    def forward(self, x: Tensor, post: Post = "none") -> Tensor:
        """(…, in) to (…, out), in the dtype of `x`."""
        if self.once or not has_bfloat16(x.device):
            return super().forward(x, post)
        weight, bias = self.packed()
        return onednn_linear(x.to(torch.bfloat16), weight, bias, post).to(x.dtype)

    def picture(self, x: Tensor, post: str) -> Tensor:
        """(N, in) to float32 (N, out)."""
        packed = self.packed()
        if len(packed) == 1:
            y = linear(x.float(), packed[0], self.bias)
            return gelu_(y, approximate="tanh") if post == "gelu" else y
        high, both, scale, zeros, middle = packed
        largest = max(abs(float(edge)) for edge in torch.aminmax(x))
        if not math.isfinite(largest):
            return x.new_full((len(x), self.out_features), math.nan, dtype=torch.float32)
        step = max(largest / LARGEST_16, 1e-20)
        # both bytes of a number count from 128; the half rounds, since the cast cuts
        numbers = torch.add(middle, x.float(), alpha=1 / step).to(torch.uint16)
        halves = numbers.contiguous().view(torch.uint8)
        upper = halves[:, 1::2].contiguous()
        multiply = torch.ops.onednn.qlinear_pointwise
        y = multiply(
            halves, step, 128, both, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = multiply.binary(
            upper, step * 256, 128, high, scale, zeros, y, self.bias, 1.0, 0, torch.float32,
            1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip
        return gelu_(y, approximate="tanh") if post == "gelu" else y

    def packed(self) -> tuple[Tensor, ...]:
        """Weights as the product reads them, made once; in bf16 with the bias beside them.

        Where sums of pairs saturate the weights in float32: three products of 7 bits take longer.
        """
        if self._packed is None:
            if self.in_bfloat16:
                self._packed = self.whole().to(torch.bfloat16), self.bias
            else:
                self._packed = (self.whole(),) if saturates() else self.laid_out()
        return self._packed

    def whole(self) -> Tensor:
        """The same, with the lower halves."""
        return (self.weight + self.weight_low / 256) * self.weight_scale[:, None]

    def laid_out(self) -> tuple[Tensor, ...]:
        """Upper halves, both halves side by side, scales, zeros, and the middle of the bytes."""
        prepack = torch.ops.onednn.qlinear_prepack
        both = torch.stack([self.weight, self.weight_low], dim=2).flatten(1)
        zeros = torch.zeros(self.out_features, dtype=torch.int32)
        middle = torch.tensor(128 * 256 + 128 + 0.5)
        laid = prepack(self.weight.contiguous(), None), prepack(both, None)
        return *laid, self.weight_scale, zeros, middle


class QuantizedMlp(nn.Module):
    """An Mlp of which one layer or both are in 8 bits, picture by picture and strip by strip."""

    def __init__(self, fc1: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1 = fc1
        self.fc2 = fc2

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) to (B, N, out); the rows of a strip share a scale."""
        hidden: Any = self.fc1
        num_rows = strip(STRIP_BYTES // (hidden.out_features * 4))
        # what both layers would round anyway, they hand on as it is
        both = multiplies_in_bfloat16(self.fc1) and multiplies_in_bfloat16(self.fc2)
        between = torch.bfloat16 if both else x.dtype
        strips = [rows for picture in x.flatten(0, -3) for rows in picture.split(num_rows)]
        y = torch.cat([self.fc2(self.fc1(rows.to(between), "gelu")) for rows in strips])
        return y.view(*x.shape[:-1], -1).to(x.dtype)


def with_int8(model: nn.Module, layers: Collection[str], fine: Collection[str] = ()) -> None:
    """Put empty 8-bit layers in place of these linear layers of `model`, of 16 bits for `fine`.

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
        shape = linear.in_features, linear.out_features, linear.bias is not None
        once = last == ONCE
        layer = Int16Linear(*shape, once) if name in fine else Int8Linear(*shape)
        setattr(model.get_submodule(parent), last, layer)
    for name, module in list(model.named_modules()):
        if isinstance(module, Mlp) and has_int8(module):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, QuantizedMlp(module.fc1, module.fc2))


def has_int8(model: nn.Module) -> bool:
    """Whether any layer is in 8 bits, or in 16 of two parts."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and weights, those in 8 bits among them."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            yield f"{name}.weight", module.weight


def by_others(model: nn.Module) -> bool:
    """Whether weights are of torchao's kinds, which are not plain numbers."""
    return any(type(each).__module__.startswith("torchao.") for each in model.parameters())


def quantized_layers(names: Iterable[str]) -> tuple[str, ...]:
    """The layers in 8 bits, by the names of a file's tensors."""
    return tuple(name.removesuffix(SCALE) for name in names if name.endswith(SCALE))


def fine_layers(names: Iterable[str]) -> tuple[str, ...]:
    """Those of them in 16 bits."""
    return tuple(name.removesuffix(LOW) for name in names if name.endswith(LOW))
