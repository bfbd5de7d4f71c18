"""Adapters' files (LoRA and its kin) of every dialect, read as updates of our weights."""

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from torch import Tensor, nn

from pixsigma.errors import MismatchError, MissingWeightsError
from pixsigma.given import expanded
from pixsigma.models.lora import OFT, Factors, Full, LoHa, LoKr, LoRA, Update, product_shape
from pixsigma.weights.adapter_names import TEXT_ENCODER, Names, NameTable, Place, Target
from pixsigma.weights.files import Tensors, open_tensors, parsed_json, read_json
from pixsigma.weights.load import MAX_LISTED

N = TypeVar("N", int, float)

ADAPTER_FILES = tuple(
    f"{stem}.{suffix}"
    for stem in ("adapter_model", "pytorch_lora_weights")
    for suffix in ("safetensors", "bin")
)
"""What peft and diffusers name the file in an adapter's folder."""

KINDS: dict[str, type[Factors]] = {
    "lora": LoRA,
    "hada": LoHa,
    "lokr": LoKr,
    "oft": OFT,
    "full": Full,
}
"""By the first word of a factor's name."""

CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of peft to start that change the base weights, so that the adapter alone is not enough."""

AlphaSource: TypeAlias = Literal["file", "config", "none"]


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """What an adapter's file is, and what of the network it changes."""

    path: str
    dialect: str
    """Whose file it is: peft, diffusers, kohya, OneTrainer, LyCORIS, ComfyUI or bare."""
    names: tuple[Names, ...]
    """Whose names its modules have."""
    kinds: tuple[str, ...]
    """LoRA, LoHa, LoKr, OFT, Full, or one of the first with DoRA's lengths."""
    ranks: tuple[int, ...]
    """The different ranks that occur; none where LoKr has whole matrices only."""
    num_modules: int
    alpha: AlphaSource
    """Where the scale comes from; with none alpha equals the rank, so that the scale is 1."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """An update and the rows of a weight that it is for."""

    target: Target
    update: Update


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A whole file; compared by identity."""

    report: AdapterReport
    patches: tuple[Patch, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How peft's config scales the modules whose file has no alpha."""

    alpha: float
    rank: int
    rslora: bool = False
    alphas: Mapping[re.Pattern[str], float] = field(default_factory=dict)
    """What a module's name ends in, by peft's patterns, to its alpha."""
    ranks: Mapping[re.Pattern[str], int] = field(default_factory=dict)
    num_terms: int | None = 5
    """Of OFT's series; None where the config asks for the inverse."""

    def of(self, module: str, rank: int | None) -> float:
        """The scale of one module; `rank` as its tensors tell. Raises ValueError without one."""
        alpha = _by_pattern(self.alphas, module, self.alpha)
        rank = rank or _by_pattern(self.ranks, module, self.rank)
        if not rank or rank < 1:
            raise ValueError(f"its rank is {rank}")
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_adapter(path: Path | str, network: nn.Module) -> Adapter:
    """Read a file, or the folder that peft or diffusers writes, for this transformer.

    Tensors stay memory-mapped. Raises MissingWeightsError, CorruptWeightsError, and MismatchError
    unless every tensor of the file has its place and shape.
    """
    path = expanded(path)
    file = adapter_file(path)
    tensors = open_tensors(file)
    groups = _grouped(file, list(tensors), NameTable(network), network)
    in_file = any("alpha" in keys for _, keys in groups)
    scaling = None if in_file else _scaling(path, file, tensors.metadata)
    patches, wrong = [], []
    for place, keys in groups:
        given = {factor: tensors[key] for factor, key in keys.items()}
        try:
            patches.append(Patch(target=place.target, update=_update(place, given, scaling)))
        except (TypeError, ValueError, LookupError, RuntimeError, ZeroDivisionError) as error:
            wrong.append(_told(place, keys, tensors, error))
    _refuse(file, network, "do not make the weight they are for", wrong)
    alpha: AlphaSource = "file" if in_file else "config" if scaling else "none"
    return Adapter(report=_report(file, groups, patches, alpha), patches=tuple(patches))


def adapter_file(path: Path | str) -> Path:
    """The file of an adapter's path; in a folder the one that peft or diffusers names so.

    Raises MissingWeightsError.
    """
    path = expanded(path)
    if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for names that are too long
        return path
    if not os.path.isdir(path):  # noqa: PTH112
        raise MissingWeightsError(f"an adapter is a file or a folder, there is none at {path}")
    named = [path / name for name in ADAPTER_FILES if (path / name).is_file()]
    inside = path / "adapter"  # of a run of `pixsigma train`
    if not named and adapter_folder(inside):
        return adapter_file(inside)
    found = named[:1] or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise MissingWeightsError(
            f"an adapter's folder has {' or '.join(ADAPTER_FILES[::2])}, or one .safetensors; "
            f"{path} has {len(found)}; name the file itself"
        )
    return found[0]


def adapter_folder(path: Path) -> bool:
    """Whether a folder has a file under one of the names that peft and diffusers give."""
    return any((path / name).is_file() for name in ADAPTER_FILES)


def _grouped(
    file: Path, keys: Sequence[str], table: NameTable, network: nn.Module
) -> list[tuple[Place, dict[str, str]]]:
    """The modules of a file, and for each its factors to their names."""
    places = {key: place for key in keys if (place := table.find(key))}
    text = [key for key in keys if key not in places and TEXT_ENCODER.match(key)]
    if text:
        raise MismatchError(
            f"an adapter must be for the transformer alone, {file} changes the text encoder too: "
            f"{len(text)} tensors such as {text[0]}; save it without them"
        )
    _refuse(file, network, "have no place", [key for key in keys if key not in places])
    groups: dict[Target, dict[str, str]] = defaultdict(dict)
    first: dict[Target, Place] = {}
    twice = []
    for key, place in places.items():
        if place.factor in groups[place.target]:
            twice.append(key)
        groups[place.target][place.factor] = key
        first.setdefault(place.target, place)
    _refuse(file, network, "are there twice under different names", twice)
    if not groups:
        raise MismatchError(f"{file} holds no tensors of an adapter")
    return [(first[target], found) for target, found in groups.items()]


def _refuse(file: Path, network: nn.Module, what: str, names: list[str]) -> None:
    if not names:
        return
    config = getattr(network, "config", None)
    size = f"{config.num_layers} blocks of width {config.width}" if config else "another shape"
    rest = len(names) - MAX_LISTED
    lines = [*names[:MAX_LISTED], *([f"and {rest} more"] if rest > 0 else [])]
    raise MismatchError(
        f"every tensor of an adapter must fit the network, {len(names)} of {file} {what}; is it "
        f"for this model, which has {size}?\n  " + "\n  ".join(lines)
    )


def _update(place: Place, given: Mapping[str, Tensor], scaling: Scaling | None) -> Update:
    """Build one update; raises what torch raises where the tensors do not fit."""
    plain = {k: t for k, t in given.items() if k not in ("alpha", "lengths", "row_lengths")}
    (kind,) = {name.partition("_")[0] for name in plain}
    told: dict[str, Any] = {name.partition("_")[2]: t for name, t in plain.items()}
    if kind == "oft" and scaling:
        told["num_terms"] = scaling.num_terms
    factors = KINDS[kind](**told)
    target = place.target.shape
    shape = product_shape(factors, target)
    if (shape[0], math.prod(shape)) != (target[0], math.prod(target)) or (
        len(shape) == len(target) and shape != target
    ):
        raise ValueError(f"together they make {shape}")
    scaled = not isinstance(factors, OFT | Full)
    scale = _scale(given.get("alpha"), factors.rank, place.module, scaling) if scaled else 1.0
    magnitude = _magnitude(given, target)
    if not math.isfinite(scale):
        raise ValueError(f"its scale is {scale}")
    if magnitude is not None and isinstance(factors, OFT):
        raise ValueError("lengths (DoRA) beside a rotation")
    return Update(factors=factors, scale=scale, magnitude=magnitude)


def _scale(alpha: Tensor | None, rank: int | None, module: str, scaling: Scaling | None) -> float:
    if alpha is not None:
        # Whole matrices in a LoKr have no rank, and LyCORIS does not scale them.
        return float(alpha.float()) / rank if rank else 1.0
    return scaling.of(module, rank) if scaling else 1.0


def _magnitude(given: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """Lengths of rows (out, 1, …) or of columns (1, in, …)."""
    rows, ones = (shape[0], *[1] * (len(shape) - 1)), [1] * (len(shape) - 2)
    if (vector := given.get("row_lengths")) is not None:
        return vector.reshape(rows)
    if (lengths := given.get("lengths")) is None:
        return None
    if lengths.shape[0] == 1 and shape[0] > 1:
        return lengths.reshape(1, shape[1], *ones)
    return lengths.reshape(rows)


def _told(place: Place, keys: Mapping[str, str], tensors: Tensors, error: Exception) -> str:
    shapes = ", ".join(f"{factor} {tensors.specs[key].shape}" for factor, key in keys.items())
    reason = str(error).split("\n")[0]
    return f"{place.module}: {shapes} for a weight of {place.target.shape} ({reason})"


def _scaling(path: Path, file: Path, metadata: Mapping[str, str]) -> Scaling | None:
    """The scale that peft's config beside the file or diffusers' metadata inside it tells."""
    config_file = file.parent / "adapter_config.json"
    if config_file.is_file() and (path.is_dir() or file.name.startswith("adapter_model.")):
        return scaling_of(read_json(config_file), str(config_file))
    if "lora_adapter_metadata" not in metadata:
        return None
    told = parsed_json(metadata["lora_adapter_metadata"], f"the metadata of {file}")
    ours = {k.removeprefix("transformer."): v for k, v in told.items() if "transformer." in k}
    return scaling_of(ours, str(file)) if "r" in ours else None


def scaling_of(config: Mapping[str, Any], source: str) -> Scaling:
    """Read peft's config; raises MismatchError for an adapter that its tensors do not tell."""
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGED_BASES):
        raise MismatchError(
            f"an adapter must be for the published weights, {source} says that training began by "
            f"changing them (init_lora_weights {start}); save it converted to a plain LoRA with "
            "peft's path_initial_model_for_weight_conversion"
        )
    if config.get("coft"):
        raise MismatchError(
            f"an adapter must be told by its tensors, {source} constrains its rotations anew at "
            "every call (coft); train it without"
        )
    try:
        rank = int(config["r"])
        terms = int(config.get("num_cayley_neumann_terms", 5))
        alphas = _patterns(config.get("alpha_pattern"), float)
        ranks = _patterns(config.get("rank_pattern"), int)
        return Scaling(
            alpha=float(config.get("lora_alpha", config.get("alpha", rank))),
            rank=rank,
            rslora=bool(config.get("use_rslora")),
            alphas=alphas,
            ranks=ranks,
            num_terms=terms if config.get("use_cayley_neumann", True) else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise MismatchError(
            f"{source} must be the config of a LoRA, LoHa, LoKr or OFT with r, it is of kind "
            f"{config.get('peft_type')}: {error}"
        ) from error


def _patterns(told: Any, kind: Callable[[Any], N]) -> dict[re.Pattern[str], N]:
    """As peft does: a pattern matches a whole name, or all after one of its dots."""
    return {re.compile(rf"(.*\.)?({name})$"): kind(value) for name, value in (told or {}).items()}


def _by_pattern(patterns: Mapping[re.Pattern[str], Any], module: str, default: Any) -> Any:
    return next((value for known, value in patterns.items() if known.match(module)), default)


def _report(
    file: Path,
    groups: Iterable[tuple[Place, Mapping[str, str]]],
    patches: Sequence[Patch],
    alpha: AlphaSource,
) -> AdapterReport:
    places = [place for place, _ in groups]
    updates = [patch.update for patch in patches]
    kinds = {type(u.factors).__name__ if u.magnitude is None else _with_lengths(u) for u in updates}
    return AdapterReport(
        path=str(file),
        dialect=" + ".join(sorted({place.dialect for place in places})),
        names=tuple(sorted({place.names for place in places})),
        kinds=tuple(sorted(kinds)),
        ranks=tuple(sorted({u.factors.rank for u in updates if u.factors.rank})),
        num_modules=len(patches),
        alpha=alpha,
    )


def _with_lengths(update: Update) -> str:
    name = type(update.factors).__name__
    return "DoRA" if name == "LoRA" else f"DoRA on {name}"
