"""Where rows come from: a folder, JSON lines, parquet, the authors' layout, tar shards."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pixsigma.data.manifest import Caption, Row, captions_of, read_lines, remote
from pixsigma.data.official import feature_files
from pixsigma.errors import InputError, MissingExtraError
from pixsigma.given import expanded

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
"""Endings that are taken for pictures, in small letters."""

PATH_KEYS = ("path", "file_name", "image")
"""Where records keep the file, relative to the file that lists it."""

AUTHORS_LIST = Path("InternData", "data_info.json")


def read_rows(data: str, *, resolution: int = 0, square: bool = False) -> Iterator[Row]:
    """The rows of a data set, in a fixed order, pictures unread.

    `data` is a folder of pictures with `.txt` captions, a folder of the authors' layout, a
    `.jsonl` or `.parquet` file, or tar shards: a folder of them, a file, or a URL (both may hold
    `*`). With `resolution` the authors' features of that size stand for their pictures. Raises
    InputError or MissingExtraError.
    """
    path = expanded(data)
    if (path / AUTHORS_LIST).is_file():
        return official_rows(path, resolution, square)
    if resolution:
        raise InputError(f"the authors' features need a folder with {AUTHORS_LIST}, got {data}")
    if data.endswith(".tar"):
        return tar_rows(data)
    if "://" in data:
        raise InputError(f"only tar shards are read from URLs, which end in .tar, got {data}")
    if path.is_dir():
        tars = not any(is_picture(p.name) for p in path.iterdir()) and any(path.glob("*.tar"))
        return tar_rows(str(path / "*.tar")) if tars else folder_rows(path)
    if path.suffix in (".jsonl", ".ndjson") and path.is_file():
        return line_rows(path)
    if path.suffix == ".parquet" and path.is_file():
        return parquet_rows(path)
    raise InputError(
        "a data set is a folder of pictures, a .jsonl or .parquet file, the authors' layout "
        f"(a folder with {AUTHORS_LIST}) or .tar shards; got {data}"
    )


MASK = ".mask.png"
"""How the name of a picture's mask ends."""


def is_picture(name: str) -> bool:
    """Whether a file's ending says that it is a picture; hidden files are none."""
    path = PurePosixPath(name)
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")


def folder_rows(folder: Path) -> Iterator[Row]:
    """`a.png`, its short caption in `a.txt`, a long one in `a.long.txt`, a mask in `a.mask.png`."""
    for path in sorted(folder.rglob("*")):
        if is_picture(path.name) and not path.name.endswith(MASK) and path.is_file():
            kinds = {".txt": "short", ".long.txt": "long"}
            beside = {path.with_name(path.stem + ending): kind for ending, kind in kinds.items()}
            captions = [
                {"text": text.read_text("utf-8", "replace"), "kind": kind}
                for text, kind in beside.items()
                if text.is_file()
            ]
            mask = path.with_name(path.stem + MASK)
            yield Row(
                path=str(path),
                captions=captions_of({"captions": captions}, str(path)),
                mask=str(mask) if mask.is_file() else "",
            )


def line_rows(path: Path) -> Iterator[Row]:
    """One JSON object a line."""
    for number, record in read_lines(path):
        yield _row(record, path.parent, f"{path}, line {number}")


def parquet_rows(path: Path) -> Iterator[Row]:
    """The same keys as columns; read in batches."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError("parquet files need pyarrow: pip install 'pixsigma[train]'") from (
            error
        )
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield _row(record, path.parent, f"{path}, row {number}")
    except ArrowException as error:
        raise InputError(f"{path} is no parquet file that can be read: {error}") from error


def official_rows(root: Path, resolution: int, square: bool) -> Iterator[Row]:
    """The authors' `InternData/data_info.json`; pictures lie in `InternImgs`."""
    listed = root / AUTHORS_LIST
    try:
        records = json.loads(listed.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{listed} cannot be read: {error}") from error
    if not isinstance(records, list):
        raise InputError(f"{listed} must hold a list of records, got {type(records).__name__}")
    for number, record in enumerate(records):
        place = f"{listed}, record {number}"
        row = _row(record, root / "InternImgs", place)
        features: tuple[str, ...] = ()
        if resolution:
            kinds = [caption.kind for caption in row.captions if caption.text]
            features = feature_files(root, _path_in(record, place), kinds, resolution, square)
        captions = tuple(c for c in row.captions if c.text) if resolution else row.captions
        yield Row(path=row.path, captions=captions, features=features)


# Tar shards


def tar_rows(pattern: str) -> Iterator[Row]:
    """Webdataset shards: files of one name but for the ending, one behind the other, are a row.

    Captions come from `.txt`, `.long.txt` and the keys of `.json`. Only headers and texts are
    read; a picture is fetched from where it lies when it is asked for.
    """
    for url in _tars(pattern):
        try:
            with _opened(url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                yield from _grouped(url, tar)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(
                f"{url} is no whole, uncompressed tar shard: {error}; fetch it again"
            ) from error


def _tars(pattern: str) -> list[str]:
    if "://" in pattern:
        files, path = remote(pattern)
        if "*" not in pattern:
            return [pattern]
        found = sorted(files.unstrip_protocol(match) for match in files.glob(path))
    else:
        path_of = Path(pattern)
        found = sorted(map(str, path_of.parent.glob(path_of.name)))
    if not found:
        raise InputError(f"there is no tar shard at {pattern}")
    return found


def _opened(url: str) -> Any:
    if "://" not in url:
        return Path(url).open("rb")
    files, path = remote(url)
    return files.open(path, "rb")


def _grouped(url: str, tar: tarfile.TarFile) -> Iterator[Row]:
    """Rows of one shard; a group ends where the next name begins."""
    key, picture, captions = "", None, list[Caption]()
    for member in tar:
        if not member.isfile():
            continue
        path = PurePosixPath(member.name)
        base, _, ending = path.name.partition(".")
        # without this a tar of thousands of pictures keeps every header
        tar.members = []  # type: ignore[attr-defined]
        if str(path.parent / base) != key:
            if picture is not None:
                yield _member_row(url, picture, captions)
            key, picture, captions = str(path.parent / base), None, []
        if is_picture(member.name):
            if picture is not None:
                raise InputError(
                    f"{url}: {picture.name} and {member.name} are of one name, and a row of a tar "
                    "shard is one picture: leave masks and copies out, or prepare from a folder"
                )
            picture = member
        else:
            captions += _texts(tar, member, ending.lower(), f"{url}:{member.name}")
    if picture is not None:
        yield _member_row(url, picture, captions)


def _texts(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, place: str) -> list[Caption]:
    if ending not in ("txt", "long.txt", "json"):
        return []
    file = tar.extractfile(member)
    text = file.read().decode("utf-8", "replace") if file else ""
    if ending == "json":
        try:
            record = json.loads(text)
        except ValueError as error:
            raise InputError(f"{place}: no JSON: {error}") from error
        return list(captions_of(record, place)) if isinstance(record, dict) else []
    return [Caption(text.strip(), "long" if ending == "long.txt" else "short")]


def _member_row(url: str, picture: tarfile.TarInfo, captions: list[Caption]) -> Row:
    return Row(
        path=url,
        captions=tuple(captions),
        member=picture.name,
        start=picture.offset_data,
        length=picture.size,
    )


def _row(record: Any, folder: Path, place: str) -> Row:
    path = folder / _path_in(record, place)
    mask = record.get("mask")
    told = str(folder / mask) if isinstance(mask, str) else ""
    return Row(path=str(path), captions=captions_of(record, place), mask=told)


def _path_in(record: Any, place: str) -> str:
    if not isinstance(record, Mapping):
        raise InputError(f"{place}: a row is a JSON object, got {type(record).__name__}")
    for key in PATH_KEYS:
        if isinstance(record.get(key), str):
            return str(record[key])
    raise InputError(f"{place}: a row needs one of {', '.join(PATH_KEYS)}, got {list(record)}")
