"""Names on the Hugging Face hub to folders on this machine: only the files that are needed."""

import re
from collections.abc import Sequence
from pathlib import Path

from pixsigma.errors import MissingWeightsError
from pixsigma.weights.locate import FileChoice, find_weights

CONFIGS = ("model_index.json", "*/config.json", "scheduler/*.json", "tokenizer/*")
"""The small files of a repository."""


def is_hub_name(name: str) -> bool:
    """Whether `name` reads as `organisation/repository`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def is_hub_file(name: str) -> bool:
    """Whether `name` reads as `organisation/repository/file.pth`."""
    pattern = r"[\w-][\w.-]*/[\w-][\w.-]*/[\w./-]+\.(?:pth|safetensors)"
    return re.fullmatch(pattern, name) is not None and ".." not in name


def fetch_folder(
    name: str,
    parts: Sequence[str],
    *,
    choice: FileChoice | None = None,
    revision: str | None = None,
) -> Path:
    """The local folder of a repository with the weights of `parts`, downloaded where not there.

    Pickles are only fetched where a part has no safetensors. Raises MissingWeightsError, which says
    how to proceed without a network.
    """
    choice = choice or FileChoice()
    folder = Path()
    for suffix in choice.suffixes:
        wanted = [pattern for part in parts for pattern in choice.patterns(part, suffix)]
        folder = _snapshot(name, [*CONFIGS, *wanted], revision, choice.offline)
        parts = [
            part for part in parts if (folder / part).is_dir() and not _has(folder, part, choice)
        ]
        if not parts:
            break
    return folder


def fetch_file(name: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """The local copy of `organisation/repository/file`; raises MissingWeightsError."""
    owner, repository, file = name.split("/", 2)
    return _snapshot(f"{owner}/{repository}", [file], revision, offline) / file


def _has(folder: Path, part: str, choice: FileChoice) -> bool:
    try:
        find_weights(folder / part, part, choice)
    except MissingWeightsError:
        return False
    return True


def _snapshot(name: str, patterns: list[str], revision: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=offline
            )
        )
    # The hub's errors have no common root: some are OSError, some ValueError, some httpx's own.
    except Exception as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0][:200]
        raise MissingWeightsError(
            f"{name} is neither a folder here nor could it be had from the hub ({reason}); "
            f"fetch it where there is a network (hf download {name} --local-dir FOLDER) "
            "and give the folder, or take the model mini, which needs no download"
        ) from error
