"""Files of JSON lines: one row a picture, as `data.py` writes them."""

from pathlib import Path
from typing import Any

from pixsigma.data.manifest import read_lines as numbered
from pixsigma.errors import InputError

Row = dict[str, Any]


def read_lines(path: Path) -> list[Row]:
    """All rows of a file; raises SystemExit where it is not there or a line is none."""
    try:
        return [row for _, row in numbered(path)]
    except InputError as error:
        raise SystemExit(f"{error}") from error
