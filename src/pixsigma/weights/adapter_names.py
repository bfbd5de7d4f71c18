"""Tables of the names that adapters' files have: whose prefixes, modules and factors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from pixsigma.models.quantized import weights_of
from pixsigma.weights.keymaps import DIFFUSERS

Names: TypeAlias = Literal["diffusers", "official"]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a program puts before the name of a module, and between the parts of it."""

    name: str
    prefix: str
    separator: Literal[".", "_"] = "."
    names: tuple[Names, ...] = ("diffusers", "official")
    """Whose names of modules come with it."""


DIALECTS = (
    Dialect(name="peft", prefix="base_model.model."),
    Dialect(name="peft", prefix="unet.base_model.model."),
    Dialect(name="peft", prefix="transformer.base_model.model."),
    Dialect(name="diffusers", prefix="transformer.", names=("diffusers",)),
    # OneTrainer's own names ("OMI"): the authors', with `qkv.0`, `qkv.1`, `qkv.2` for the parts.
    Dialect(name="OneTrainer", prefix="transformer.", names=("official",)),
    Dialect(name="OneTrainer", prefix="lora_transformer."),
    Dialect(name="OneTrainer", prefix="lora_transformer_", separator="_"),
    Dialect(name="diffusers", prefix="unet.", names=("diffusers",)),
    Dialect(name="ComfyUI", prefix="diffusion_model."),
    Dialect(name="ComfyUI", prefix="model.diffusion_model."),
    Dialect(name="kohya", prefix="lora_unet_", separator="_"),
    Dialect(name="LyCORIS", prefix="lycoris_", separator="_"),
    Dialect(name="bare", prefix=""),
)
"""Longer prefixes go before those that they begin with."""

TEXT_ENCODER = re.compile(r"(lora_te\d?[_.]|lycoris_te|text_encoder|t5(xxl)?\.)")
"""How names of adapters for T5 begin."""

ALIASES = (
    (r"\.processor\.to_out_lora\.", ".to_out.0.lora."),
    (r"\.processor\.(to_[qkv])_lora\.", r".\1.lora."),
)
"""How diffusers wrote names before it used peft."""

_ADAPTER = r"(?:\.(?!weight)\w+)?"  # peft in memory has the adapter's name there

FACTORS = tuple(
    (re.compile(pattern + "$"), factor)
    for pattern, factor in (
        (rf"\.lora_A{_ADAPTER}\.weight", "lora_down"),
        (rf"\.lora_B{_ADAPTER}\.weight", "lora_up"),
        (r"\.lora[._](down|up|mid)\.weight", r"lora_\1"),
        (r"\.alpha", "alpha"),
        (rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?", "row_lengths"),
        (r"\.dora_scale", "lengths"),
        (r"\.(hada_(?:w[12]_[ab]|t[12]))", r"\1"),
        (r"\.(lokr_(?:w[12]|w[12]_[ab]|t2))", r"\1"),
        (rf"\.oft_R{_ADAPTER}\.weight", "oft_vectors"),
        (r"\.diff", "full_difference"),
    )
)
"""How names of tensors end, and what they are."""


@dataclass(frozen=True)
class Target:
    """A weight of ours, or some rows of one that other layouts have in parts."""

    key: str
    start: int
    stop: int
    shape: tuple[int, ...]
    """Of the rows."""


@dataclass(frozen=True)
class Place:
    """What the name of a tensor says."""

    dialect: str
    names: Names
    module: str
    """In the file's own words, dots in place of underscores where they stand for dots."""
    target: Target
    factor: str


class NameTable:
    """Every name that a module of this network has in any dialect."""

    def __init__(self, network: nn.Module) -> None:
        self._dotted: dict[Names, dict[str, Target]] = {"diffusers": {}, "official": {}}
        for key, weight in weights_of(network):
            if key.endswith(".weight") and weight.ndim >= 2:
                self._add(key, tuple(weight.shape))
        self._flat: dict[Names, dict[str, str]] = {
            names: {name.replace(".", "_"): name for name in table}
            for names, table in self._dotted.items()
        }

    def _add(self, key: str, shape: tuple[int, ...]) -> None:
        ours = key.removesuffix(".weight")
        theirs = [name.removesuffix(".weight") for name in DIFFUSERS.theirs_of(key)]
        rows = shape[0] // len(theirs)
        self._dotted["official"][ours] = Target(key, 0, shape[0], shape)
        for i, name in enumerate(theirs):
            target = Target(key, i * rows, (i + 1) * rows, (rows, *shape[1:]))
            self._dotted["diffusers"][name] = target
            if len(theirs) > 1:
                self._dotted["official"][f"{ours}.{i}"] = target

    @property
    def tables(self) -> Mapping[Names, Mapping[str, Target]]:
        """Names with dots to what they mean."""
        return self._dotted

    def find(self, key: str) -> Place | None:
        """What a tensor of this name is; None where no table knows."""
        for old, put in ALIASES:
            key = re.sub(old, put, key)
        for pattern, factor in FACTORS:
            if match := pattern.search(key):
                return self._module(key[: match.start()], match.expand(factor))
        return None

    def _module(self, path: str, factor: str) -> Place | None:
        for dialect in DIALECTS:
            if not path.startswith(dialect.prefix):
                continue
            name = path.removeprefix(dialect.prefix)
            for names in dialect.names:
                dotted = name if dialect.separator == "." else self._flat[names].get(name, "")
                if target := self._dotted[names].get(dotted):
                    return Place(dialect.name, names, dotted, target, factor)
        return None
