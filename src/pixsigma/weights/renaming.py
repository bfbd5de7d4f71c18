"""Two sets of names for the same tensors, and the way between them, both ways."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pixsigma.errors import MismatchError
from pixsigma.weights.files import Spec, Tensors

_KIND = r"(?P<kind>|\.weight|\.bias)"


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """A table of names, read from left to right and from right to left."""

    name: str
    """Whose names these are, for messages."""

    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Our module or parameter and theirs, `{i}` for the number of a block.

    Several of theirs are one of ours, joined along the first axis. No rules: the names are equal.
    """

    aliases: tuple[tuple[str, str], ...] = ()
    """Regular expressions, and what to put in place: older names, prefixes of other programs."""

    dropped: tuple[str, ...] = ()
    """Regular expressions of names that carry nothing we need (constants, other networks)."""

    twins: tuple[str, ...] = ()
    """Names under which a file may have one tensor twice."""

    flattened: str | None = None
    """Names whose weights older files keep as 1 × 1 convolutions, four axes for two."""

    @cached_property
    def _to_theirs(self) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
        return [(_pattern(ours), theirs) for ours, theirs in self.rules]

    @cached_property
    def _to_ours(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(name), ours) for ours, theirs in self.rules for name in theirs]

    def theirs_of(self, key: str) -> tuple[str, ...]:
        """Their names for one of our parameters; the name itself where no rule speaks of it."""
        for pattern, names in self._to_theirs:
            if match := pattern.fullmatch(key):
                return tuple(_filled(name, match) for name in names)
        return (key,)

    def ours_of(self, key: str) -> str:
        """Our name for one of their parameters; the name itself where no rule speaks of it."""
        for pattern, name in self._to_ours:
            if match := pattern.fullmatch(key):
                return _filled(name, match)
        return key

    def canonical(self, keys: Iterable[str]) -> dict[str, str]:
        """Their current names, without what is dropped, to the names that the file has.

        Raises MismatchError where a file has one tensor under two names.
        """
        found: dict[str, str] = {}
        for key in keys:
            name = key
            for pattern, put in self.aliases:
                name = re.sub(pattern, put, name)
            if any(re.fullmatch(pattern, name) for pattern in self.dropped):
                continue
            if name in found and name not in self.twins:
                raise MismatchError(
                    f"a file must have each tensor once, {found[name]} and {key} are the same: are "
                    "there two models in it? leave one set out"
                )
            if name not in found or name == key:
                found[name] = key
        return found

    def to_ours(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """The same tensors under our names, joined where ours are wider, read when asked for.

        What no rule speaks of, and parts of an incomplete group, keep their names. Raises
        MismatchError for parts of different shapes.
        """
        source = Tensors.of(tensors)
        names = self.canonical(source)
        parts: dict[str, tuple[str, ...]] = {}
        for name in names:
            ours = self.ours_of(name)
            group = self.theirs_of(ours)
            if all(part in names for part in group):
                parts[ours] = tuple(names[part] for part in group)
            else:
                parts[name] = (names[name],)
        specs = {key: self._joined(key, [source.specs[p] for p in parts[key]]) for key in parts}

        def read(key: str) -> Tensor:
            pieces = [source[part] for part in parts[key]]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            return tensor.reshape(specs[key].shape)

        return Tensors(specs, read)

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """The same tensors under their names, split where ours are wider, read when asked for."""
        source = Tensors.of(tensors)
        places: dict[str, tuple[str, int, int]] = {}
        for key in source:
            group = self.theirs_of(key)
            places |= {name: (key, i, len(group)) for i, name in enumerate(group)}
        specs = {name: _split(source.specs[key], num) for name, (key, _, num) in places.items()}

        def read(name: str) -> Tensor:
            key, i, num = places[name]
            return source[key].chunk(num)[i] if num > 1 else source[key]

        return Tensors(specs, read)

    def _joined(self, key: str, specs: list[Spec]) -> Spec:
        shape = specs[0].shape
        if len(specs) > 1:
            if len({spec.shape for spec in specs}) > 1 or not shape:
                shapes = " + ".join(str(spec.shape) for spec in specs)
                raise MismatchError(f"the parts of {key} must be of one shape, they are {shapes}")
            shape = (sum(spec.shape[0] for spec in specs), *shape[1:])
        if self.flattened and shape[2:] == (1, 1) and re.fullmatch(self.flattened, key):
            shape = shape[:2]
        return Spec(shape, specs[0].dtype)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{i\}", r"(?P<i>\d+)") + _KIND)


def _filled(name: str, match: re.Match[str]) -> str:
    found = match.groupdict()
    return name.replace("{i}", found.get("i") or "") + found["kind"]


def _split(spec: Spec, num: int) -> Spec:
    return spec if num == 1 else Spec((spec.shape[0] // num, *spec.shape[1:]), spec.dtype)
