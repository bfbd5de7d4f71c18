"""Tensors into networks: strict, without a second copy, with a report that helps."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from pixsigma.errors import MismatchError
from pixsigma.weights.files import Spec, Tensors
from pixsigma.weights.renaming import KeyMap

M = TypeVar("M", bound=nn.Module)

MAX_LISTED = 5
"""Names of each kind that a report lists before it only counts."""


def load_into(
    build: Callable[[], M],
    tensors: Mapping[str, Tensor],
    keymap: KeyMap | None = None,
    *,
    dtype: torch.dtype | Callable[[str], torch.dtype] | None = None,
) -> M:
    """Build a network and give it its weights, ready for inference.

    The network is built without memory and takes the tensors themselves, so a memory-mapped file
    is only paged in. `dtype` is a type for all or a function of our key; None keeps the file's.
    Raises MismatchError where names or shapes do not fit.
    """
    with torch.device("meta"):
        module = build()
    given = keymap.to_ours(tensors) if keymap else Tensors.of(tensors)
    wanted = Tensors.of(module.state_dict()).specs
    check_fit(wanted, given.specs, keymap)
    state = {key: _cast(given[key], key, dtype) for key in wanted}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def check_fit(
    wanted: Mapping[str, Spec], given: Mapping[str, Spec], keymap: KeyMap | None = None
) -> None:
    """Raise MismatchError unless `given` has the names and shapes of `wanted` and no others, and
    numbers with a point where those have.
    """
    missing = [name for key in wanted if key not in given for name in _told(key, given, keymap)]
    unexpected = [key for key in given if key not in wanted]
    wrong = [
        f"{' + '.join(_told(key, {}, keymap))} is {given[key].shape}, expected {wanted[key].shape}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    wrong += [
        f"{' + '.join(_told(key, {}, keymap))} is of {_kind(given[key])}, expected "
        f"{_kind(wanted[key])}"
        for key in wanted
        if key in given
        and given[key].dtype.is_floating_point != wanted[key].dtype.is_floating_point
    ]
    if not (missing or unexpected or wrong):
        return
    lines = [
        f"weights must fit the network: {len(missing)} tensors are missing, "
        f"{len(unexpected)} are not expected, {len(wrong)} have another shape or kind",
        *_listed("missing", missing),
        *_listed("not expected", unexpected),
        *_listed("shape", wrong),
        *(f"perhaps: {guess}" for guess in _guesses(missing, unexpected, wrong)),
    ]
    raise MismatchError("\n  ".join(lines))


def _kind(spec: Spec) -> str:
    return str(spec.dtype).removeprefix("torch.")


def _told(key: str, given: Mapping[str, Spec], keymap: KeyMap | None) -> list[str]:
    """The names that the file would have for a key, without those that it has."""
    names = keymap.theirs_of(key) if keymap else (key,)
    return [name for name in names if name not in given]


def _listed(title: str, names: list[str]) -> list[str]:
    rest = len(names) - MAX_LISTED
    lines = [f"{title}: {name}" for name in names[:MAX_LISTED]]
    return [*lines, f"{title}: and {rest} more"] if rest > 0 else lines


def _guesses(missing: list[str], unexpected: list[str], wrong: list[str]) -> list[str]:
    """What a mismatch usually means, by the names that show it."""
    named = "\n".join(unexpected)
    hints = {
        "attn.sr": "the file has KV compression and the config does not",
        "q_norm": "the file has query-key norms and the config does not (qk_norm)",
        "csize_embedder": "the file is a PixArt-α with size conditions, the config is without",
        "lora_": "this is an adapter (LoRA), to be given beside a model",
        "scale_weight": "the file is quantized; take one in fp32, fp16 or bf16",
        "controlnet": "this is a ControlNet, not a transformer",
    }
    found = [text for sign, text in hints.items() if sign in named]
    if missing and unexpected and not wrong and len(missing) > len(unexpected) * 10:
        found.append("this is another kind of network, or only a part of one")
    if any("csize_embedder" in name or "resolution_embedder" in name for name in missing):
        found.append("the config speaks of size conditions (PixArt-α 1024), the file has none")
    if wrong and not found:
        found.append("config and weights come from different models")
    return found


def _cast(
    tensor: Tensor, key: str, dtype: torch.dtype | Callable[[str], torch.dtype] | None
) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype if isinstance(dtype, torch.dtype) else dtype(key))
