"""Safetensors files as memory of the process, page by page: read ahead, looked at, forgotten.

What is mapped counts as resident memory once it was touched, so whoever reads a file larger than
the memory has to forget what it is done with; the system's page cache keeps it where there is room.
"""

import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pixsigma.errors import CorruptWeightsError, MismatchError, MissingWeightsError
from pixsigma.weights.files import SAFETENSORS_DTYPES, Spec, Tensors, open_tensors, read_json

_PAGE = mmap.PAGESIZE


class MappedFile:
    """One `.safetensors` file; its tensors look into the file and cost nothing until read."""

    def __init__(self, path: Path) -> None:
        # checks header, sizes and types of the file, with the errors of every other reader
        self.specs = open_tensors(path).specs
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            # private and writable, as torch warns of memory that it may not write; nobody does
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._fd = os.dup(file.fileno())
        begin = 8 + length
        self._places = {
            key: tuple(begin + offset for offset in header[key]["data_offsets"])
            for key in self.specs
        }
        self._types = {key: SAFETENSORS_DTYPES[header[key]["dtype"]] for key in self.specs}

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def read(self, key: str) -> Tensor:
        """A view into the file; what it shows stays true after `forget`."""
        spec, (begin, _) = self.specs[key], self._places[key]
        if not spec.num_elements:
            return torch.empty(spec.shape, dtype=spec.dtype)
        flat = torch.frombuffer(
            self._map, dtype=self._types[key], count=spec.num_elements, offset=begin
        )
        return flat.view(spec.shape)

    def ahead(self, key: str) -> None:
        """Ask the system to begin reading a tensor from the disk, and do not wait for it."""
        if hasattr(os, "posix_fadvise"):
            begin, end = self._places[key]
            os.posix_fadvise(self._fd, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def touch(self, key: str) -> None:
        """Wait until a tensor is in memory."""
        if self.specs[key].num_elements:
            self.read(key).flatten().view(torch.uint8)[::_PAGE].sum()

    def forget(self, key: str) -> None:
        """Take the pages of a tensor out of the process; only the page cache may keep them."""
        if hasattr(self._map, "madvise"):
            begin, end = self._places[key]
            # whole pages only: the first and the last may hold a neighbour, which is read again
            first = begin // _PAGE * _PAGE
            self._map.madvise(mmap.MADV_DONTNEED, first, min(end, len(self._map)) - first)


class Mapped:
    """A safetensors file or a sharded index of them, under the names of the files."""

    def __init__(self, files: Mapping[str, MappedFile]) -> None:
        """`files` has the file of each tensor."""
        self._files = dict(files)
        specs: dict[str, Spec] = {key: file.specs[key] for key, file in self._files.items()}
        self.tensors = Tensors(specs, lambda key: self._files[key].read(key))

    def ahead(self, key: str) -> None:
        """Begin to read a tensor from the disk, without waiting."""
        self._files[key].ahead(key)

    def touch(self, key: str) -> None:
        """Wait until a tensor is in memory."""
        self._files[key].touch(key)

    def forget(self, key: str) -> None:
        """Take the pages of a tensor out of the process."""
        self._files[key].forget(key)


def map_tensors(path: Path | str) -> Mapped:
    """Map a `.safetensors` file or its sharded `.index.json`.

    Raises MissingWeightsError, CorruptWeightsError, or MismatchError for another kind of file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        file = MappedFile(path)
        return Mapped(dict.fromkeys(file.specs, file))
    if path.suffix != ".json":
        raise MismatchError(
            f"only safetensors can be read layer by layer, got {path.name}; "
            "load the whole encoder, or save it once as safetensors (save_pretrained)"
        )
    owner = read_json(path).get("weight_map")
    if not isinstance(owner, dict) or not owner:
        raise CorruptWeightsError(f"{path} must have a weight_map from tensor to file")
    # A name in the index must not lead out of its folder.
    names = {key: Path(str(name)).name for key, name in owner.items()}
    for name in names.values():
        if not name.endswith(".safetensors"):
            raise MissingWeightsError(f"{path} must name .safetensors files only, it names {name}")
    shards = {name: MappedFile(path.parent / name) for name in sorted(set(names.values()))}
    lost = [key for key, name in names.items() if key not in shards[name].specs]
    if lost:
        raise CorruptWeightsError(
            f"{path} names {len(lost)} tensors that are in no file: {lost[0]}"
        )
    return Mapped({key: shards[name] for key, name in names.items()})
