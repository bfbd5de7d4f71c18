"""Where the parts run: resident on one device, or brought there only while they work."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from pixsigma.errors import InputError, OutOfMemoryError


def choose_device(name: str = "auto") -> torch.device:
    """The device that was asked for; `auto` takes CUDA, then MPS, then the CPU.

    Raises InputError where this machine has no such device.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available()}
    present["mps"] = torch.backends.mps.is_available()
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
    kind, colon, number = name.partition(":")
    counts = {"cuda": torch.cuda.device_count()}
    one_of_them = not colon or (number.isdecimal() and int(number) < counts.get(kind, 1))
    if not (present.get(kind, False) and one_of_them):
        usable = ", ".join(kind for kind, here in present.items() if here)
        raise InputError(f"there is no device {name!r} here; usable: auto, {usable}")
    return torch.device(name)


@dataclass
class Placement:
    """One rule for all parts of a pipeline.

    `resident`: everything lies on `device`. `model`: one part at a time is moved there and back.
    `sequential`: accelerate brings single layers there as they run; least memory, slowest. What
    says that it is `in_one_piece` is brought as a whole then.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mode: Literal["resident", "model", "sequential"] = "resident"

    @contextmanager
    def running(self, *parts: nn.Module | None) -> Iterator[None]:
        """While inside, `parts` can compute on the device.

        Raises OutOfMemoryError where the device has too little memory.
        """
        moved = [p for p in parts if p is not None and self._brings_whole(p)]
        try:
            for part in moved:
                part.to(self.device)
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"{self.device} has too little memory: {str(error).splitlines()[0]}; a smaller "
                "size, fewer pictures at a time or enable_model_cpu_offload() would do"
            ) from error
        finally:
            for part in moved:
                part.to("cpu")

    def settle(self, *parts: nn.Module | None) -> None:
        """Put the parts where they rest under this rule."""
        for part in parts:
            if part is None:
                continue
            # an encoder behind a cache of its answers may not be open yet
            cached: Any = part if hasattr(part, "settle") else None
            if cached is not None:
                cached.settle = self.settle if self.mode == "sequential" else None
            if self._brings_whole(part):
                part.to("cpu")
            elif self.mode == "resident":
                part.to(self.device)
            elif cached is not None:
                self.settle(cached.inner)
            elif getattr(part, "streamed", False):
                part.to(self.device)  # what is left in memory; the file has the rest
            else:
                self._stream_layers(part)

    def _brings_whole(self, part: nn.Module) -> bool:
        return self.mode == "model" or (
            self.mode == "sequential" and getattr(part, "in_one_piece", False)
        )

    def _stream_layers(self, part: nn.Module) -> None:
        from accelerate import cpu_offload

        part.to("cpu")
        cpu_offload(part, execution_device=self.device, offload_buffers=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python found no memory; on the CPU torch has no error of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return not isinstance(error, OutOfMemoryError)
    return "can't allocate memory" in str(error)


def release(*parts: nn.Module | None) -> None:
    """Undo what `sequential` attached, so that the parts can be placed anew."""
    layered = [getattr(part, "inner", None) or part for part in parts]
    hooked = [part for part in layered if part is not None and hasattr(part, "_hf_hook")]
    if not hooked:
        return
    from accelerate.hooks import remove_hook_from_module

    for part in hooked:
        remove_hook_from_module(part, recurse=True)
