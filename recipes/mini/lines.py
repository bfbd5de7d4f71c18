"""Files of JSON lines: one row a picture, as `data.py` writes and the other steps read them."""

import json
from pathlib import Path
from typing import Any

from pixsigma.weights.files import atomic_write

Row = dict[str, Any]


def read_lines(path: Path) -> list[Row]:
    """All rows of a file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_lines(path: Path, rows: list[Row]) -> None:
    """One line a row, the file whole or not at all."""
    with atomic_write(path) as temp:
        temp.write_text(
            "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8"
        )
