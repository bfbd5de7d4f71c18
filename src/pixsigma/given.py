"""What is given, read in one way everywhere: numbers (Python's and numpy's, no True) and paths."""

import math
import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number above 0."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def expanded(path: Path | str) -> Path:
    """A path with `~` told; one of an unknown person stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises
