"""Adapters of a pipeline: stacked, weighted, changed without loading, taken off without a trace."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from pixsigma.errors import InputError, MissingWeightsError, UnknownNameError
from pixsigma.given import expanded, is_number
from pixsigma.models.quantized import ONCE, Int8Linear, Int16Linear, by_others
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.placement import release
from pixsigma.quantize import is_quantized
from pixsigma.weights.adapters import Adapter, AdapterReport, Patch, read_adapter

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline
    from pixsigma.requests import LoraChoice

Weighted: TypeAlias = tuple[tuple[Adapter, float], ...]
"""Adapters and their weights; each adds its weight times what it would add alone."""

Base: TypeAlias = Tensor | Int8Linear
"""What lies beneath an adapter: a weight, or a layer that keeps its weights in 8 bits."""


@dataclass
class LoraStack:
    """What is loaded, what the weights of the network hold, and what lies beneath."""

    loaded: dict[str, Adapter] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    base: dict[str, Base] = field(default_factory=dict)
    """The touched weights as they were, on the CPU."""
    in_effect: Weighted | None = ()
    """None while they are being changed, so that a failure there does not pass for done."""
    network: nn.Module | None = None
    """Whose weights `base` has."""
    in_use: WeakValueDictionary[Any, Adapter] = field(default_factory=WeakValueDictionary)
    """What requests asked for, as long as one is drawn with it."""

    def wanted(self) -> Weighted:
        """What the pipeline draws with when a request asks for nothing else."""
        return tuple((self.loaded[name], w) for name, w in self.weights.items() if w)


def load_lora(
    self: "PixArtSigmaPipeline", path: str | Path, name: str | None = None, weight: float = 1.0
) -> AdapterReport:
    """Put an adapter's file or folder on the transformer, beside those that are there.

    `name` is the file's where not given, `weight` its strength. Raises WeightsError; then the
    pipeline is as before.
    """
    stack = self.loras
    path = expanded(path)
    name = name or (path.name if path.is_dir() else path.stem)
    if name in stack.loaded:
        raise InputError(f"each adapter has its own name, {name!r} is loaded; pass another name=")
    weights = stack.weights | {name: checked(weight, name)}
    adapter = read_adapter(path, adaptable(self))
    put_on(self, (*stack.wanted(), *(((adapter, weight),) if weight else ())))
    stack.loaded[name], stack.weights = adapter, weights
    return adapter.report


def set_loras(self: "PixArtSigmaPipeline", weights: Mapping[str, float]) -> None:
    """Give the loaded adapters these weights; those not named are off.

    Raises UnknownNameError, or InputError for a weight that is not finite.
    """
    stack = self.loras
    if unknown := [name for name in weights if name not in stack.loaded]:
        raise UnknownNameError(
            f"loaded adapters are {', '.join(stack.loaded) or 'none'}; got {', '.join(unknown)}"
        )
    stack.weights = {name: checked(weight, name) for name, weight in weights.items()}
    put_on(self, stack.wanted())


def unload_loras(self: "PixArtSigmaPipeline") -> None:
    """Forget all adapters; the weights are those of before, to the last bit."""
    put_on(self, ())
    self.loras = LoraStack()


def fuse_loras(self: "PixArtSigmaPipeline") -> None:
    """Make the adapters in effect part of the weights for good, as `save_pretrained` needs it."""
    put_on(self, self.loras.wanted())
    self.loras = LoraStack()


def refuse_unfused(pipe: "PixArtSigmaPipeline") -> None:
    """Raise InputError where it would be a guess whether adapters belong to the model."""
    if pipe.loras.in_effect != ():
        raise InputError(
            "a model is saved or quantised with adapters fused or without; call fuse_loras() or "
            f"unload_loras() first, got {', '.join(pipe.loras.loaded)} in effect"
        )


def read_choices(pipe: "PixArtSigmaPipeline", choices: Iterable["LoraChoice"]) -> Weighted:
    """The adapters that a request asks for; raises WeightsError.

    Those of drawings at the same time are one object, so that they can share batches.
    """
    asked = [choice for choice in choices if choice.weight]
    return tuple((_read_once(pipe, c.path), c.weight) for c in asked)


def _read_once(pipe: "PixArtSigmaPipeline", path: str | Path) -> Adapter:
    path, network = expanded(path), adaptable(pipe)
    written = path.stat().st_mtime_ns if path.exists() else 0
    key = str(path), written, id(network)
    if (known := pipe.loras.in_use.get(key)) is None:
        known = pipe.loras.in_use[key] = read_adapter(path, network)
    return known


@dataclass(frozen=True)
class Adapted:
    """The transformer with its adapters in effect whenever it is asked."""

    pipe: "PixArtSigmaPipeline"
    own: Weighted

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The transformer's forward."""
        self.settle()
        return self.pipe.transformer(*args, **kwargs)

    @property
    def packs(self) -> bool:
        """Whether the parts of its blocks can be called one by one, for tokens of all pictures.

        Not where layers are brought when their block runs, have one scale a picture, or are
        compiled into one function.
        """
        network = self.pipe.transformer
        in_place = self.pipe.placement.mode != "sequential"
        return in_place and isinstance(network, PixArtTransformer) and not is_quantized(network)

    def __getattr__(self, name: str) -> Any:
        # `read` and `embed`, where the transformer has them
        found = getattr(self.pipe.transformer, name)
        self.settle()
        return found

    def settle(self) -> None:
        """Put on the adapters of the pipeline and its own."""
        put_on(self.pipe, (*self.pipe.loras.wanted(), *self.own))


@contextmanager
def adapted(pipe: "PixArtSigmaPipeline", own: Weighted = ()) -> Iterator[Adapted]:
    """The transformer with the pipeline's adapters and `own`, which are off again at the end.

    Every call checks what is in effect, so requests that are drawn by turns do not mix.
    """
    network = Adapted(pipe, own)
    try:
        # Before the weights travel: on their resting place this takes no room on the device.
        network.settle()
        yield network
    finally:
        put_on(pipe, pipe.loras.wanted())


def put_on(pipe: "PixArtSigmaPipeline", wanted: Weighted) -> None:
    """Bring the transformer's weights to what they are with exactly these adapters."""
    stack = pipe.loras
    if stack.in_effect == wanted and (not wanted or network_of(pipe) is stack.network):
        return
    network = stack.network if stack.base and stack.network and not wanted else network_of(pipe)
    if stack.base and network is not stack.network:
        raise InputError(
            "adapters stay with the transformer that they were put on, and it was replaced; call "
            "unload_loras() and load them again"
        )
    stack.network, stack.in_effect = network, None
    streamed = pipe.placement.mode == "sequential"
    if streamed:
        release(network)
    try:
        merge(network, wanted, stack.base)
    finally:
        if streamed:
            pipe.placement.settle(network)
    stack.in_effect = wanted


@torch.no_grad()
def merge(network: nn.Module, wanted: Weighted, base: dict[str, Base]) -> None:
    """base + Σ weight · delta in float32, rounded once; `base` keeps the weights that it touches.

    Weights are replaced, not written into: they may lie in a mapped file that others read.
    """
    patches: dict[str, list[tuple[Patch, float]]] = defaultdict(list)
    for adapter, strength in wanted:
        for patch in adapter.patches:
            patches[patch.target.key].append((patch, strength))
    for key in [key for key in base if key not in patches]:
        put(network, key, base.pop(key))
    for key, found in patches.items():
        layer: Any = network.get_submodule(key.removesuffix(".weight"))
        if key not in base:
            base[key] = layer if isinstance(layer, Int8Linear) else layer.weight.data.cpu()
        plain = whole(base[key], layer.weight.device)
        total = plain.clone()
        for patch, strength in found:
            rows = slice(patch.target.start, patch.target.stop)
            total[rows] += strength * patch.update.delta(plain[rows])
        put(network, key, total)


def whole(base: Base, device: torch.device) -> Tensor:
    """A weight in float32."""
    plain = base.whole() if isinstance(base, Int8Linear) else base
    return plain.to(device, torch.float32)


def put(network: nn.Module, key: str, value: Base) -> None:
    """Give a layer a weight, or the network its old layer.

    In place of 8 bits a sum gets 16: what an adapter adds is often less than a step of 8.
    """
    parent, _, name = key.removesuffix(".weight").rpartition(".")
    owner = network.get_submodule(parent)
    layer = getattr(owner, name)
    if isinstance(value, Int8Linear):
        setattr(owner, name, value)
    elif isinstance(layer, Int8Linear):
        setattr(owner, name, Int16Linear.holding(value, layer.bias, name == ONCE))
    else:
        layer.weight.data = value.to(layer.weight.device, layer.weight.dtype)


def network_of(pipe: "PixArtSigmaPipeline") -> nn.Module:
    """The transformer itself, also where a compiled one took its place."""
    if pipe.transformer is None:
        raise MissingWeightsError("this pipeline has no transformer to put an adapter on")
    network: nn.Module = getattr(pipe.transformer, "_orig_mod", pipe.transformer)
    return network


def adaptable(pipe: "PixArtSigmaPipeline") -> nn.Module:
    """The same, where its weights can be added to; raises InputError for torchao's."""
    network = network_of(pipe)
    if by_others(network):
        raise InputError(
            "adapters are not added to weights that torchao quantised: load the model without, "
            "load_lora, fuse_loras(), then quantize(); int8 and int8-fast take them as they are"
        )
    return network


def checked(weight: float, name: str) -> float:
    """The weight; raises InputError where it is no finite number."""
    if not is_number(weight):
        raise InputError(
            f"the weight of an adapter must be a finite number, got {weight!r} for {name}"
        )
    return weight
