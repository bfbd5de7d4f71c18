"""The whole state of a run, written whole or not at all."""

from pathlib import Path
from typing import Any

import torch

from pixsigma.errors import CorruptWeightsError, OutputError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` by way of a file beside it.

    Raises OutputError and leaves the last checkpoint as it was.
    """
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"the checkpoint {path} could not be written: {error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, without running any code that a pickle may hold."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CorruptWeightsError(f"the checkpoint {path} cannot be read: {error}") from error
    return state
