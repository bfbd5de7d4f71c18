"""What this machine has: memory that can be used, and how fast it multiplies and reads."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from pixsigma.errors import InputError
from pixsigma.models.products import Linear

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 1024**i for i, unit in enumerate("kmgt", start=1)}
"""Prefixes of bytes."""

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a plan is for."""

    device: torch.device
    memory: int
    """Bytes that this process may take on the device, its own included."""
    base: int = 0
    """Bytes that the process takes before anything is loaded."""
    flops: float | None = None
    """A second, of a product of matrices; None where it was not measured."""
    attention: float | None = None
    """The same of attention; None: as of a product."""
    bandwidth: float | None = None
    """Bytes a second of stored weights, read from memory and made fp32."""


def this_machine(device: torch.device, dtype: torch.dtype, measure: bool = True) -> Machine:
    """Look, and if wanted measure for about a second."""
    if device.type == "cuda":
        found = Machine(device=device, memory=torch.cuda.mem_get_info(device)[0])
    else:
        base = resident_memory()
        found = Machine(device=device, memory=available_memory() + base, base=base)
    if not measure:
        return found
    return replace(
        found,
        flops=product_rate(device, dtype),
        attention=attention_rate(device, dtype),
        bandwidth=cast_rate(),
    )


def resident_memory() -> int:
    """Bytes that this process takes now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def available_memory() -> int:
    """Bytes that could be taken without swapping, within the limit of a container."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None else min(free, max(0, limit - (used or 0)))


def parse_memory(text: str) -> int:
    """Bytes of a size such as 4GB, 3.5GiB or 900MB; raises InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise InputError(f"--memory must be a size such as 4GB, 3.5GiB or 900MB, got {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions a second, at the widths of the XL transformer."""
    rows, inner, outer = (1024, 1152, 4608) if device.type == "cpu" else (8192, 1152, 4608)
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    layer = Linear(inner, outer, device=device, dtype=dtype)  # by the library that networks take
    with torch.no_grad():
        return 2.0 * rows * inner * outer / _quickest(lambda: layer(x), device)


def attention_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions a second of attention, at the heads of the XL transformer."""
    heads, tokens, width = 16, 1024 if device.type == "cpu" else 4096, 72
    q = torch.randn(1, heads, tokens, width, device=device, dtype=dtype)
    seconds = _quickest(lambda: scaled_dot_product_attention(q, q, q), device)
    return 4.0 * heads * tokens**2 * width / seconds


def cast_rate() -> float:
    """Bytes a second of fp16 that become fp32."""
    stored = torch.zeros(8 * 2**20, dtype=torch.float16)
    out = torch.empty(len(stored), dtype=torch.float32)
    return stored.nbytes / _quickest(lambda: out.copy_(stored), stored.device)


def _quickest(run: Callable[[], object], device: torch.device, tries: int = 5) -> float:
    """Seconds of the best of some tries: whatever else the machine does only adds to it."""
    seconds = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
