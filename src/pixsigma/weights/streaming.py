"""T5 in a small part of its size: matrix by matrix comes from the file, works and is dropped."""

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pixsigma.config import T5Config
from pixsigma.models.narrow import product
from pixsigma.models.quantized import SCALE
from pixsigma.models.t5 import T5Encoder
from pixsigma.weights.files import Spec, Tensors
from pixsigma.weights.keymaps import T5
from pixsigma.weights.load import check_fit
from pixsigma.weights.mapped import Mapped, map_tensors

AHEAD = 2
"""Matrices in memory at once: the one that works and the next, which is read meanwhile."""


class StreamedT5(nn.Module):
    """The encoder with its matrices left in the file; answers equal those of `T5Encoder`.

    Norms and the position bias stay in memory. The linear layers compute in `dtype` on the device
    of what comes in, whatever precision the file has; those that the file has in 8 bits multiply
    in 8 bits on a CPU.
    """

    streamed = True
    """That nothing else need bring its layers to a device one by one."""

    def __init__(self, config: T5Config, mapped: Mapped, dtype: torch.dtype, hold: int = 0) -> None:
        """`hold` is how many bytes of matrices stay in memory once they were read: the first ones.

        Raises MismatchError where names or shapes do not fit `config`.
        """
        super().__init__()
        self.config = config
        names = {T5.ours_of(name): key for name, key in T5.canonical(mapped.tensors).items()}
        self._tensors = T5.to_ours(mapped.tensors)
        with torch.device("meta"):
            net = T5Encoder(config)
        check_fit(expected(net, self._tensors), self._tensors.specs, T5)
        order = in_order(config)
        held = frozenset(first_bytes(order, self._tensors.specs, hold))
        self._reader = Reader(mapped, [names[key] for key in order], {names[key] for key in held})
        kept = partial(T5Encoder.storage_dtype, dtype=dtype)
        net.embed = Rows(self._tensors["embed.weight"], dtype)  # type: ignore[assignment]
        for name, module in list(net.named_modules()):
            if isinstance(module, nn.Linear):
                net.set_submodule(name, self._layer(f"{name}.weight", kept))
        state = {key: self._tensors[key].to(kept(key), copy=True) for key in net.state_dict()}
        net.load_state_dict(state, strict=True, assign=True)
        self.net = net.eval().requires_grad_(False)
        self._lock = threading.Lock()

    def _layer(self, key: str, kept: Any) -> nn.Module:
        stored = self._tensors[key]
        name = key.removesuffix(".weight") + SCALE
        scale = self._tensors[name].clone() if stored.dtype is torch.int8 else None
        return StreamedLinear(stored, scale, kept(key), self._reader)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, E) for `ids` (B, L) and `mask` (B, L), as of `T5Encoder`."""
        with self._lock, self._reader:
            return self.net(ids, mask)

    def read_only(self) -> None:
        """Read all matrices as for a prompt, and compute nothing: how quick it could be at best."""
        with self._lock, self._reader:
            self._reader.drain()

    @property
    def device(self) -> torch.device:
        """Where it computes unless told otherwise."""
        return self.net.device

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """All tensors of the encoder under our names, in the file's precision, not yet read."""
        return self._tensors


class StreamedLinear(nn.Module):
    """`y = x Wᵀ` with a W that is in a file, in 8 bits with a scale for each output."""

    def __init__(
        self, stored: Tensor, scale: Tensor | None, dtype: torch.dtype, reader: "Reader"
    ) -> None:
        super().__init__()
        # plain attributes, so that moving the encoder moves nothing; T5 asks for its type
        self.weight = torch.empty(stored.shape, dtype=dtype, device="meta")
        self._stored, self._scale = stored, scale
        self._reader = reader

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        self._reader.wait()
        y = product(x, self._stored, self.weight.dtype, self._scale)
        self._reader.done()
        return y


class Rows(nn.Module):
    """An embedding that reads the rows asked for out of a file."""

    def __init__(self, stored: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self._stored = stored
        self._dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) to (B, L, E) on the device of `ids`."""
        return self._stored[ids.cpu()].to(ids.device, self._dtype)


class Reader:
    """A thread that reads a file's tensors in a known order, a few ahead of who uses them.

    A context: inside it `wait` before a tensor is used, `done` after it. What is `held` stays, and
    is not read in the next round.
    """

    def __init__(self, mapped: Mapped, order: Iterable[str], held: Collection[str] = ()) -> None:
        self._mapped = mapped
        self._order = list(order)
        self._held = held
        self._stay: set[str] = set()

    def __enter__(self) -> Self:
        self._used, self._stopped = 0, False
        self._error: BaseException | None = None
        self._room = threading.Semaphore(AHEAD)
        self._ready = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="pixsigma-reader", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._room.release()
        self._thread.join()
        for key in self._order[self._used : self._used + AHEAD + 1]:
            if key not in self._stay:
                self._mapped.forget(key)

    def wait(self) -> None:
        """Return when the next tensor is in memory; raises what the reading raised."""
        self._ready.acquire()
        if self._error is not None:
            raise self._error

    def done(self) -> None:
        """Drop the tensor unless it is held; the thread may read another one."""
        key = self._order[self._used]
        if key in self._held:
            self._stay.add(key)
        else:
            self._mapped.forget(key)
        self._used += 1
        self._room.release()

    def drain(self) -> None:
        """Take all tensors and use none."""
        for _ in self._order:
            self.wait()
            self.done()

    def _run(self) -> None:
        try:
            self._read_all()
        except BaseException as error:  # whoever waits must hear of it, or waits for ever
            self._error = error
            self._ready.release()

    def _read_all(self) -> None:
        for key in self._order[:AHEAD]:
            self._ahead(key)
        for i, key in enumerate(self._order):
            self._room.acquire()
            if self._stopped:
                return
            last = i + AHEAD
            for later in self._order[last : last + 1]:
                self._ahead(later)
            if key not in self._stay:
                self._mapped.touch(key)
            self._ready.release()

    def _ahead(self, key: str) -> None:
        if key not in self._stay:
            self._mapped.ahead(key)


def most_at_once(sizes: Sequence[float]) -> float:
    """The most bytes in memory at once of matrices of these sizes, which are read in this order."""
    return max(sum(sizes[i : i + AHEAD]) for i in range(len(sizes)))


def in_order(config: T5Config) -> list[str]:
    """Our names of the matrices in the order in which the encoder uses them."""
    layer = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.wi_0", "mlp.wi_1", "mlp.wo")
    return [f"blocks.{i}.{name}.weight" for i in range(config.num_layers) for name in layer]


def expected(net: T5Encoder, given: Tensors) -> dict[str, Spec]:
    """Names and shapes of `net`, with the scales of the matrices that a file has in 8 bits."""
    specs = Tensors.of(net.state_dict()).specs
    for key in in_order(net.config):
        if key in given.specs and given.specs[key].dtype is torch.int8:
            specs[key] = Spec(specs[key].shape, torch.int8)
            specs[key.removesuffix(".weight") + SCALE] = Spec(specs[key].shape[:1], torch.float32)
    return specs


def first_bytes(order: Iterable[str], specs: dict[str, Spec], room: int) -> Iterator[str]:
    """As many of the first tensors as have room."""
    for key in order:
        room -= specs[key].num_bytes if key in specs else 0
        if room < 0:
            return
        yield key


def open_streamed(
    path: Path | str, config: T5Config, dtype: torch.dtype | None, hold: int = 0
) -> StreamedT5:
    """The encoder in a safetensors file or sharded index; `dtype` None computes in fp32.

    `hold` is how many bytes of matrices may stay in memory. Raises MissingWeightsError,
    CorruptWeightsError or MismatchError.
    """
    return StreamedT5(config, map_tensors(path), dtype or torch.float32, hold)
