"""Files of JSON lines: one row a picture, as `data.py` writes them."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_lines(path: Path) -> list[Row]:
    """All rows of a file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
