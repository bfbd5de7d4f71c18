"""What a data set is made of: rows, each a picture and what was written about it."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pixsigma.errors import InputError, MissingExtraError

Kind: TypeAlias = Literal["short", "long"]

SHORT_KEYS = ("caption", "short_caption", "text", "prompt")
"""Where records keep a short caption."""

LONG_KEYS = ("long_caption", "sharegpt4v")
"""Where they keep a long one; the authors' long captions were written by ShareGPT4V."""


@dataclass(frozen=True)
class Caption:
    """One text about a picture."""

    text: str
    kind: Kind = "short"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A picture and its captions; size and hash are 0 and empty until it was looked at."""

    path: str
    """A file, or the file or URL of the tar that holds it."""
    captions: tuple[Caption, ...]
    width: int = 0
    """In pixels as shown, the orientation that cameras note taken into account."""
    height: int = 0
    sha: str = ""
    """SHA-256 of the file's bytes, in hexadecimal."""
    member: str = ""
    """Name inside the tar."""
    start: int = 0
    length: int = 0
    """Where the picture lies inside the tar, in bytes; 0 for a file of its own."""
    mask: str = ""
    """A picture file, white where the picture counts in a masked loss; empty: everywhere."""
    features: tuple[str, ...] = ()
    """Files of the authors' features: latents, then one for each caption."""

    @property
    def name(self) -> str:
        """What people know the picture by."""
        return f"{self.path}:{self.member}" if self.member else self.path

    def to_json(self) -> dict[str, Any]:
        """What is not empty, as plain values."""
        return {key: value for key, value in asdict(self).items() if value}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Row":
        """The inverse of `to_json`."""
        captions = tuple(Caption(**caption) for caption in values.get("captions", ()))
        features = tuple(values.get("features", ()))
        return Row(**{**values, "captions": captions, "features": features})


def captions_of(record: Mapping[str, Any], place: str) -> tuple[Caption, ...]:
    """The captions in a record of JSON lines, parquet or a tar.

    `captions` is a list of texts or of `{"text": …, "kind": "short" | "long"}`; other keys are
    SHORT_KEYS and LONG_KEYS, each a text or a list of texts. Raises InputError with `place`.
    """
    found = [_caption(value, "short", place) for value in _listed(record.get("captions"))]
    for keys, kind in ((SHORT_KEYS, "short"), (LONG_KEYS, "long")):
        for key in keys:
            found += [_caption(value, kind, place) for value in _listed(record.get(key))]
    return tuple(found)


def read_bytes(row: Row) -> bytes:
    """The bytes of a picture's file; raises OSError where it cannot be read."""
    if "://" in row.path:
        files, path = remote(row.path)
        data: bytes = files.cat_file(path, start=row.start, end=row.start + row.length)
        return data
    with Path(row.path).open("rb") as file:
        file.seek(row.start)
        return file.read(row.length) if row.length else file.read()


def remote(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path on it; raises MissingExtraError or InputError."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError(
            f"URLs such as {url} are read by fsspec: pip install 'pixsigma[train]'"
        ) from error
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(f"{url} needs one package more: {error}") from error
    except ValueError as error:
        raise InputError(f"{url} is no URL that fsspec knows: {error}") from error
    return files, str(path)


def fingerprint(rows: Iterable[Row]) -> str:
    """A hash of everything that the rows say: another one means that the data changed."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.to_json(), sort_keys=True).encode())
    return digest.hexdigest()


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and values of a JSON lines file; empty lines are skipped; raises InputError."""
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number or 1}: no JSON: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _caption(value: Any, kind: Any, place: str) -> Caption:
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        kind, value = value.get("kind", kind), value["text"]
    if not isinstance(value, str) or kind not in ("short", "long"):
        raise InputError(
            f'{place}: a caption is a text, or {{"text": …, "kind": "short" or "long"}}, '
            f"got {value!r} of kind {kind!r}"
        )
    return Caption(value.strip(), kind)
