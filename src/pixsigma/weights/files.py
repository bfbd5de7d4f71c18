"""Weights files: read tensor by tensor and without running code; written whole or not at all."""

import json
import os
import pickle
import pickletools
import re
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pixsigma.errors import (
    CorruptWeightsError,
    InputError,
    MismatchError,
    MissingWeightsError,
    OutOfMemoryError,
    OutputError,
    UnsafeWeightsError,
)

PICKLES = (".pth", ".pt", ".ckpt", ".bin")
"""Suffixes of what `torch.save` writes."""

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


MAPPED_BYTES = 128 * 2**20
"""What is read of a safetensors file before it is mapped anew."""


@dataclass(frozen=True)
class Spec:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return self.num_elements * self.dtype.itemsize

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return int(torch.Size(self.shape).numel())


class Tensors(Mapping[str, Tensor]):
    """Named tensors whose shapes are known and whose values are read when asked for."""

    def __init__(
        self,
        specs: Mapping[str, Spec],
        read: Callable[[str], Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.specs = dict(specs)
        self.metadata = dict(metadata or {})
        self._read = read

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> "Tensors":
        """A view of tensors that are in memory already."""
        if isinstance(tensors, cls):
            return tensors
        specs = {key: Spec(tuple(value.shape), value.dtype) for key, value in tensors.items()}
        return cls(specs, tensors.__getitem__, metadata)

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.specs:
            raise KeyError(key)
        return self._read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def num_bytes(self) -> int:
        """Size in memory if all were read."""
        return sum(spec.num_bytes for spec in self.specs.values())


def open_tensors(path: Path | str, *, ema: bool = False) -> Tensors:
    """Open `.safetensors`, a sharded `.index.json`, or a pickle of `torch.save`, memory-mapped.

    `ema` takes the averaged weights of a training file. Raises MissingWeightsError,
    CorruptWeightsError, UnsafeWeightsError (a pickle with code in it) or MismatchError (no weights
    inside).
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeightsError(f"a weights file must exist, there is none at {path}")
    if path.suffix == ".json":
        return _open_sharded(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in PICKLES:
        content = _unpickle(path)
        return Tensors.of(_state_dict(content, path, ema), _pickled_metadata(content))
    raise MissingWeightsError(
        f"weights are .safetensors or {', '.join(PICKLES)}, got {path.name}; rename or convert it"
    )


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path | str, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `.safetensors`, or the authors' `{"state_dict": ...}` for a pickle's suffix.

    `metadata` is free text that readers of the same format ignore.

    Raises OutputError where the file cannot be written; then what was there before is untouched.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *PICKLES):
        raise InputError(f"weights are written as .safetensors or .pth, got {path.name}")
    solid = {key: tensors[key].contiguous() for key in tensors}
    with atomic_write(path) as temp:
        if path.suffix == ".safetensors":
            save_file(solid, str(temp), metadata={"format": "pt", **(metadata or {})})
        else:
            state = {key: _alone(value) for key, value in solid.items()}
            torch.save({"state_dict": state, "metadata": dict(metadata or {})}, temp)


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a path to write to; at the end it takes the place of `path`, on failure it is removed.

    Raises OutputError for whatever the file system refuses.
    """
    path = Path(path)
    # The same folder, since a rename is atomic only within one file system.
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.touch()
        mode = temp.stat().st_mode
        yield temp
        # safetensors leaves its files readable by the owner only, whatever the umask says.
        temp.chmod(mode)
        with temp.open("rb+") as written:
            os.fsync(written.fileno())
        temp.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}; is there room, and the right?") from error
    except RuntimeError as error:
        # torch.save reports a full disk or a missing right as a RuntimeError of its zip writer.
        if "PytorchStreamWriter" not in str(error) and "cannot be opened" not in str(error):
            raise
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


def write_json(path: Path | str, value: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path) as temp:
        temp.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines, one a row, whole or not at all."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_write(path) as temp:
        temp.write_text("".join(lines), encoding="utf-8")


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object; raises MissingWeightsError or CorruptWeightsError."""
    path = Path(path)
    if not path.is_file():
        raise MissingWeightsError(f"a model folder needs {path.name}, there is none at {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise CorruptWeightsError(f"{path} must be JSON: {error}; fetch it again") from error
    return parsed_json(text, str(path))


def parsed_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object; raises CorruptWeightsError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptWeightsError(f"{what} must be JSON: {error}; fetch it again") from error
    if not isinstance(value, dict):
        raise CorruptWeightsError(f"{what} must hold a JSON object, got {type(value).__name__}")
    return value


def _open_safetensors(path: Path) -> Tensors:
    with _reading(path):
        file: Any = safe_open(str(path), framework="pt")
        specs = {}
        for key in file.keys():  # noqa: SIM118 - a handle, not a mapping
            part = file.get_slice(key)
            specs[key] = Spec(tuple(part.get_shape()), _dtype(part.get_dtype(), path))
        metadata = file.metadata()
    return Tensors(specs, Fresh(path, file), metadata)


class Fresh:
    """Reads tensors of a safetensors file, mapped anew from time to time.

    Pages that were read stay with their mapping. Without a new one, a file that is cast while it
    is loaded would lie in memory whole, beside its copy.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file
        self._num_bytes = 0

    def __call__(self, key: str) -> Tensor:
        """Read one tensor; it keeps its mapping."""
        if self._num_bytes > MAPPED_BYTES:
            self._file, self._num_bytes = safe_open(str(self._path), framework="pt"), 0
        tensor: Tensor = self._file.get_tensor(key)
        self._num_bytes += tensor.nbytes
        return tensor


def _dtype(name: str, path: Path) -> torch.dtype:
    if name not in SAFETENSORS_DTYPES:
        raise MismatchError(f"{path} holds tensors of type {name}, which pixsigma does not know")
    return SAFETENSORS_DTYPES[name]


def _open_sharded(index: Path) -> Tensors:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CorruptWeightsError(f"{index} must have a weight_map from tensor to file")
    # A name in the index must not lead out of its folder.
    names = sorted({Path(str(name)).name for name in places.values()})
    if nested := [name for name in names if name.endswith(".json")]:
        raise CorruptWeightsError(f"{index} must name weights files, it names {nested[0]}")
    shards = {name: open_tensors(index.parent / name) for name in names}
    owner = {key: shards[Path(str(name)).name] for key, name in places.items()}
    lost = [key for key, shard in owner.items() if key not in shard.specs]
    if lost:
        raise CorruptWeightsError(
            f"{index} names {len(lost)} tensors that are in no file: {lost[0]}"
        )
    specs = {key: shard.specs[key] for key, shard in owner.items()}
    metadata = {key: text for shard in shards.values() for key, text in shard.metadata.items()}
    return Tensors(specs, lambda key: owner[key][key], metadata)


def _unpickle(path: Path) -> Any:
    """Only tensors and plain containers come out; files of torch >= 1.6 are memory-mapped."""
    with _reading(path):
        with path.open("rb") as file:
            mapped = file.read(4) == b"PK\x03\x04"
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


_BROKEN = (
    SafetensorError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    OSError,
    # of an old pickle that is cut off or is none
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)
"""What readers of weights raise for a file that is not whole."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the readers raise into our errors."""
    again = "is it whole? compare its size, or fetch it again"
    try:
        yield
    except MismatchError:
        raise
    except pickle.UnpicklingError as error:
        code = _code_in(str(error))
        if code is None:
            raise CorruptWeightsError(f"{path} is not a readable pickle; {again}") from error
        raise UnsafeWeightsError(
            f"a weights file must hold tensors only, {path} refers to code: {code}; nothing of it "
            "was run; get it as .safetensors, or strip it to tensors where you trust it"
        ) from error
    except PermissionError as error:
        raise MissingWeightsError(f"{path} must be readable: {error}") from error
    except _BROKEN as error:
        reason = str(error).strip().split("\n")[0][:200]
        if "allocate memory" in reason:
            raise OutOfMemoryError(
                f"{path} cannot be mapped ({reason}): this system maps no file that is larger than "
                "its memory and swap; more swap would do, or sysctl vm.overcommit_memory=1, or for "
                "a text encoder smaller files (pixsigma convert --to text-int8 on another machine)"
            ) from error
        raise CorruptWeightsError(f"{path} cannot be read ({reason}); {again}") from error


def _alone(tensor: Tensor) -> Tensor:
    """A copy where torch.save would drag along the larger storage that a view looks into."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _code_in(message: str) -> str | None:
    """What torch's unpickler refused to run, by its message; None where it could not read."""
    operand = re.search(r"Unsupported operand (\d+)", message)
    if operand:
        # An operation that exists may build objects; one that does not is noise.
        names = {ord(known.code): known.name for known in pickletools.opcodes}
        name = names.get(int(operand[1]))
        return f"operation {name}" if name else None
    reason = message.rpartition("WeightsUnpickler error:")[2]
    if not re.search(r"[Uu]nsupported|[Uu]nrecognized|blocked|[Cc]an only", reason):
        return None
    found = re.search(r"(?:GLOBAL|function|class)\s+([\w.]*\w)", reason)
    return found[1] if found else "an object"


def _state_dict(content: Any, path: Path, ema: bool) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise MismatchError(
            f"{path} must hold a dictionary of tensors, it holds a {type(content).__name__}"
        )
    if ema and "state_dict_ema" not in content:
        raise MismatchError(f"{path} holds no averaged weights (state_dict_ema); ask without ema")
    inner = (
        content["state_dict_ema" if ema else "state_dict"] if "state_dict" in content else content
    )
    if not isinstance(inner, dict):
        raise MismatchError(
            f"the state_dict of {path} must be a dictionary of tensors, it is a "
            f"{type(inner).__name__}"
        )
    tensors = {k: v for k, v in inner.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise MismatchError(f"{path} holds no tensors; its first keys are {list(content)[:5]}")
    return tensors


def _pickled_metadata(content: Any) -> dict[str, str]:
    found = content.get("metadata") if isinstance(content, dict) else None
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
