"""What a transformer is, told by the names and shapes of its tensors alone."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pixsigma.config import KVCompression, TransformerConfig
from pixsigma.errors import MismatchError
from pixsigma.presets import MAX_TOKENS, Variant
from pixsigma.weights.files import Spec, Tensors
from pixsigma.weights.keymaps import transformer_names
from pixsigma.weights.renaming import KeyMap

HEAD_DIM = 72
"""K of every published PixArt."""

_SIDES = (
    (r"(?<![0-9])4k(?![a-z0-9])", 4096),
    (r"(?<![0-9])2k(?![a-z0-9])|(?<![0-9])2048(?![0-9])", 2048),
    (r"(?<![0-9])1024(?![0-9])", 1024),
    (r"(?<![0-9])512(?![0-9])", 512),
    (r"(?<![0-9])256(?![0-9])", 256),
)


_PREFIXES = r"^(?:model\.diffusion_model\.|base_model\.|model\.|module\.)+"


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What the file tells, and whose names it has."""

    config: TransformerConfig
    variant: Variant
    keymap: KeyMap


def detect_transformer(
    tensors: Tensors,
    name: str = "",
    *,
    resolution: int | None = None,
    variant: Variant | None = None,
    attention_head_dim: int | None = None,
) -> Detected:
    """Read the config off names and shapes; `name` is the file's, and hints go before all.

    Nothing in the tensors of Σ tells the resolution, except a position table that older files
    keep. Σ is assumed unless caption table, size conditions or name say α.
    Raises MismatchError where something cannot be told.
    """
    keymap = transformer_names(tensors)
    original = {re.sub(_PREFIXES, "", key): spec for key, spec in tensors.specs.items()}
    specs = keymap.to_ours(tensors).specs
    try:
        shape = _network(specs, attention_head_dim)
        compression = _compression(specs)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise MismatchError(
            f"{name or 'the file'} is no whole PixArt transformer: it fails at {error}"
        ) from error
    conditions = "csize_embedder.mlp.0.weight" in specs
    side = resolution or _side(original, name, conditions, shape["patch_size"])
    plain = TransformerConfig(
        **shape,
        sample_size=side // 8,
        use_additional_conditions=conditions,
        qk_norm="blocks.0.attn.q_norm.weight" in specs,
        kv_compression=compression,
    )
    kind = variant or variant_of(original, name, plain)
    scale = side / 512 if kind == "sigma" else max(side / 512, 1.0)
    config = replace(plain, interpolation_scale=scale)
    return Detected(config=config, variant=kind, keymap=keymap)


def variant_of(specs: Mapping[str, Spec], name: str, config: TransformerConfig) -> Variant:
    """Σ, unless size conditions, the table for the empty caption or the name say α."""
    captions = specs.get("y_embedder.y_embedding")
    if config.use_additional_conditions:
        return "alpha"
    if captions is not None:
        return "alpha" if captions.shape[0] == MAX_TOKENS["alpha"] else "sigma"
    told = re.search(r"alpha|PixArt-XL", name) and not re.search(r"sigma", name, re.IGNORECASE)
    return "alpha" if told else "sigma"


def _network(specs: Mapping[str, Spec], head_dim: int | None) -> dict[str, int]:
    """The numbers that shapes tell."""
    width, in_channels, patch = specs["x_embedder.proj.weight"].shape[:3]
    blocks = {int(m[1]) for key in specs if (m := re.match(r"blocks\.(\d+)\.", key))}
    if blocks != set(range(len(blocks))):
        raise MismatchError(f"blocks must be numbered from 0 without a gap, got {sorted(blocks)}")
    head = head_dim or HEAD_DIM
    if width % head:
        raise MismatchError(
            f"the size of a head is not told by the tensors: {head} does not divide the width "
            f"{width}; pass attention_head_dim, or a folder with config.json"
        )
    return {
        "num_layers": len(blocks),
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "in_channels": in_channels,
        "out_channels": specs["final_layer.linear.weight"].shape[0] // patch**2,
        "patch_size": patch,
        "caption_channels": specs["y_embedder.y_proj.fc1.weight"].shape[1],
    }


def _compression(specs: Mapping[str, Spec]) -> KVCompression | None:
    ratios = {
        int(m[1]): spec.shape[-1]
        for key, spec in specs.items()
        if (m := re.fullmatch(r"blocks\.(\d+)\.attn\.sr\.weight", key))
    }
    if not ratios:
        return None
    if len(set(ratios.values())) > 1:
        raise MismatchError(f"KV compression must have one ratio in all layers, got {ratios}")
    return KVCompression(layers=tuple(sorted(ratios)), ratio=next(iter(ratios.values())))


def _side(specs: Mapping[str, Spec], name: str, conditions: bool, patch: int) -> int:
    """Side in pixels; where nothing else tells, size conditions mean the published α at 1024."""
    table = specs.get("pos_embed") or specs.get("pos_embed.pos_embed")
    if table and len(table.shape) == 3:
        return math.isqrt(table.shape[1]) * patch * 8
    for pattern, side in _SIDES:
        if re.search(pattern, name, re.IGNORECASE):
            return side
    if conditions:
        return 1024
    raise MismatchError(
        f"the resolution is told neither by the tensors nor by the name {name!r}, and a wrong one "
        "draws noise; pass resolution=256, 512, 1024 or 2048"
    )
