"""What a folder of data asks a model to draw, and the real pictures that it compares with.

    captions.jsonl          training pictures: {"path", …}
    held_out.jsonl          pictures kept from training: {"path", "style", …}
    eval/index.jsonl        real pictures of every thing: {"path", "thing", "style"}
    eval/prompts.jsonl      {"measure": "things" | "held_out" | "synonyms", "prompt", "thing"} or
                            {"measure": "compositions", "task", "prompt", "things", "relation"}
    eval/vocabulary.jsonl   what compositions are made of: {"path", "thing", "style"}

Paths are told from the folder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pixsigma.data.manifest import read_lines
from pixsigma.errors import InputError
from pixsigma.evaluation.compositions import Composition, Wanted, reference_features
from pixsigma.evaluation.distance import thumbnails
from pixsigma.evaluation.features import Array, Measure, extract, kept
from pixsigma.evaluation.retrieval import References

RETRIEVED = ("things", "held_out", "synonyms")
"""Measures that ask for one thing a prompt."""
MEASURES = (*RETRIEVED, "compositions")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and the thing that its drawing must look like."""

    prompt: str
    thing: str


class Questions:
    """A folder of data, opened; features of its pictures are kept beside it."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the folder lacks the lists or a line is no question."""
        self.folder = folder
        rows = self.rows("eval/prompts.jsonl")
        if strange := {str(row.get("measure")) for row in rows} - set(MEASURES):
            raise InputError(
                f"a measure is one of {', '.join(MEASURES)}; eval/prompts.jsonl of {folder} has "
                f"{', '.join(sorted(strange))}"
            )
        self.retrieved = {
            measure: [_parsed(_question, row) for row in rows if row.get("measure") == measure]
            for measure in RETRIEVED
        }
        asked = [row for row in rows if row.get("measure") == "compositions"]
        self.compositions = [_parsed(_composition, row) for row in asked]

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a list, one or more; raises InputError."""
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"a folder to evaluate with holds {name}, {self.folder} does not")
        rows = []
        for number, row in read_lines(path):
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: a row is a JSON object, got {row!r}")
            rows.append(row)
        if not rows:
            raise InputError(f"{path} is empty")
        return rows

    def asks(self, measure: str) -> bool:
        """Whether there is a question of a measure."""
        return bool(self.retrieved.get(measure, self.compositions))

    def store(self, name: str) -> Path:
        """The file beside the folder that keeps features of this kind."""
        whole = self.folder.resolve()
        return whole.with_name(f"{whole.name}-{name}.npz")

    def references(self) -> References:
        """Every thing in every style, whole pictures."""
        return self._references("eval/index.jsonl", extract, "features")

    def vocabulary(self) -> References:
        """What compositions are made of, cut out."""
        return self._references("eval/vocabulary.jsonl", reference_features, "crops")

    def held_out(self) -> Array:
        """Features of the pictures kept from training."""
        return kept(self._paths(self.rows("held_out.jsonl")), extract, self.store("features"))

    def held_out_styles(self) -> list[str]:
        """Styles of the pictures kept from training."""
        return sorted(set(self._texts("style", self.rows("held_out.jsonl"))))

    def training_thumbnails(self) -> Array:
        """Thumbnails of every training picture."""
        return kept(self._paths(self.rows("captions.jsonl")), thumbnails, self.store("thumbnails"))

    def _paths(self, rows: Sequence[dict[str, Any]]) -> list[Path]:
        return [self.folder / path for path in self._texts("path", rows)]

    def _texts(self, key: str, rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
        return tuple(_parsed(lambda row: _text(row, key), row) for row in rows)

    def _references(self, name: str, measure: Measure, store: str) -> References:
        rows = self.rows(name)
        return References(
            features=kept(self._paths(rows), measure, self.store(store)),
            things=self._texts("thing", rows),
            styles=self._texts("style", rows),
        )


T = TypeVar("T")


def _parsed(parse: Callable[[dict[str, Any]], T], row: dict[str, Any]) -> T:
    try:
        return parse(row)
    except KeyError as error:
        raise InputError(f"a row of the data has no {error}: {row}") from error
    except TypeError as error:
        raise InputError(f"a row of the data is none ({error}): {row}") from error


def _text(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} must be a text")
    return value


def _question(row: dict[str, Any]) -> Question:
    return Question(prompt=_text(row, "prompt"), thing=_text(row, "thing"))


def _composition(row: dict[str, Any]) -> Composition:
    return Composition(
        task=_text(row, "task"),
        prompt=_text(row, "prompt"),
        things=tuple(Wanted(**{**thing, "name": _text(thing, "name")}) for thing in row["things"]),
        relation=row.get("relation"),
    )


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items, evenly spread over them; raises InputError for less than 1."""
    if limit is not None and limit < 1:
        raise InputError(f"a limit must be at least 1, got {limit}")
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
