"""Names and numbers as people write and read them."""

from pathlib import Path

INSIDE = Path(__file__).parents[1] / "mini"
"""The folder of the model that the package carries."""


def size(num: float) -> str:
    """Bytes for people, in decimal units as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if num < 1000:
            return f"{num:.3g} {unit}"
        num /= 1000
    return f"{num:.3g} GB"
