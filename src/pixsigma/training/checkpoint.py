"""The whole state of a run, written whole or not at all."""

from pathlib import Path
from typing import Any

import torch

from pixsigma.errors import CorruptWeightsError, MissingWeightsError, OutputError

FOLDER = "checkpoints"
"""Inside a run's folder."""


def checkpoint_at(out: Path, step: int) -> Path:
    """Where the state after `step` steps lies."""
    return out / FOLDER / f"{step:08}.pt"


def checkpoints(out: Path) -> list[Path]:
    """What there is, the oldest first."""
    return sorted((out / FOLDER).glob("*.pt"))


def latest_checkpoint(out: Path) -> Path:
    """The newest state; raises MissingWeightsError where the run has none."""
    found = checkpoints(out)
    if not found:
        raise MissingWeightsError(
            f"a run is resumed from its last checkpoint, {out} has none; begin without --resume"
        )
    return found[-1]


def drop_old_checkpoints(out: Path, keep: int) -> None:
    """Remove all but the newest `keep`."""
    for path in checkpoints(out)[:-keep]:
        path.unlink()


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
