"""The published `config.json` files, and our `words.txt`: read into what we use, written from it.

What a file leaves out has the default of the library that wrote it, which is not always ours.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from pixsigma.config import AutoencoderConfig, KVCompression, T5Config, TransformerConfig
from pixsigma.errors import CorruptWeightsError, InputError, MismatchError
from pixsigma.given import is_number, is_whole
from pixsigma.weights.files import atomic_write, read_json

C = TypeVar("C")

TRANSFORMER_CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")
"""The second is what diffusers called it before 0.29."""

_TRANSFORMER_FIXED: dict[str, tuple[Any, ...]] = {
    "norm_type": ("ada_norm_single",),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-6,),
    "attention_type": ("default", None),
    "upcast_attention": (False, True),
    "num_embeds_ada_norm": (1000,),
    "dropout": (0, 0.0),
    "norm_num_groups": (32,),
    "only_cross_attention": (False,),
    "double_self_attention": (False,),
    "use_linear_projection": (False,),
    "num_vector_embeds": (None,),
}
"""Keys of which our network knows these values only."""

_AUTOENCODER_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
}

_T5_FIXED: dict[str, tuple[Any, ...]] = {
    "feed_forward_proj": ("gated-gelu",),
    "model_type": ("t5",),
}

_OURS = ("kv_compression", "qk_norm", "quantization_config")

QUANTIZATION = {"quant_method": "pixsigma-int8"}
"""What the config of a network in 8 bits says, so that other programs refuse it."""

WORDS = "words.txt"
"""In `tokenizer/`, one a line."""


def transformer_config(values: Mapping[str, Any]) -> TransformerConfig:
    """Read the config of a PixArt transformer in diffusers layout.

    Two traps of that layout: without `use_additional_conditions` a `sample_size` of 128 means that
    there are some, and without `interpolation_scale` it follows from the size.
    Raises MismatchError for a network that is not PixArt.
    """
    _check_class(values, TRANSFORMER_CLASSES)
    _check_fixed(values, _TRANSFORMER_FIXED, "transformer")
    _check_fixed(values, {"quantization_config": (None, QUANTIZATION)}, "transformer")
    size = whole("sample_size", values.get("sample_size", 128))
    heads = tuple(
        whole(key, values.get(key, default))
        for key, default in (("num_attention_heads", 16), ("attention_head_dim", 72))
    )
    captions = values.get("caption_channels")
    if captions is None:
        raise MismatchError("a PixArt transformer needs caption_channels, the config has none")
    _check_unknown(values, {*_TRANSFORMER_FIXED, *_OURS, *_transformer_defaults()}, "transformer")
    if values.get("cross_attention_dim", heads[0] * heads[1]) != heads[0] * heads[1]:
        raise MismatchError(
            f"cross_attention_dim must be the width {heads[0] * heads[1]}, "
            f"got {values['cross_attention_dim']}"
        )
    extra, scale = values.get("use_additional_conditions"), values.get("interpolation_scale")
    in_channels = values.get("in_channels", 4)
    if scale is None:
        scale = max(size // 64, 1)
    return _made(
        TransformerConfig,
        num_layers=values.get("num_layers", 28),
        num_attention_heads=heads[0],
        attention_head_dim=heads[1],
        in_channels=in_channels,
        out_channels=values.get("out_channels", 8) or in_channels,
        patch_size=values.get("patch_size", 2),
        sample_size=size,
        caption_channels=captions,
        interpolation_scale=scale,
        use_additional_conditions=size == 128 if extra is None else bool(extra),
        qk_norm=bool(values.get("qk_norm", False)),
        kv_compression=_compression(values.get("kv_compression")),
    )


def transformer_json(config: TransformerConfig) -> dict[str, Any]:
    """What `transformer_config` reads; with our own keys only where diffusers cannot run it."""
    own: dict[str, Any] = {"qk_norm": True} if config.qk_norm else {}
    if config.kv_compression:
        own["kv_compression"] = asdict(config.kv_compression)
    plain = {key: getattr(config, key) for key in _transformer_defaults() - {"cross_attention_dim"}}
    return {
        "_class_name": TRANSFORMER_CLASSES[0],
        **dict(sorted(plain.items())),
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "cross_attention_dim": config.width,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
        **own,
    }


def autoencoder_config(values: Mapping[str, Any]) -> AutoencoderConfig:
    """Read the config of an `AutoencoderKL`; raises MismatchError for another kind.

    Files of SD 1.5 leave `scaling_factor` out: it is 0.18215 then, not that of SDXL.
    """
    _check_class(values, ("AutoencoderKL",))
    _check_fixed(values, _AUTOENCODER_FIXED, "autoencoder")
    for key, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        blocks = values.get(f"{key}_block_types", [kind])
        if not isinstance(blocks, list) or not blocks or any(block != kind for block in blocks):
            raise MismatchError(f"{key}_block_types must all be {kind}, got {blocks}")
    widths = values.get("block_out_channels", [64])
    return _made(
        AutoencoderConfig,
        in_channels=values.get("in_channels", 3),
        out_channels=values.get("out_channels", 3),
        latent_channels=values.get("latent_channels", 4),
        block_out_channels=tuple(widths) if isinstance(widths, list) else widths,
        layers_per_block=values.get("layers_per_block", 1),
        norm_num_groups=values.get("norm_num_groups", 32),
        scaling_factor=values.get("scaling_factor", 0.18215),
        shift_factor=values.get("shift_factor"),
        sample_size=values.get("sample_size", 32),
        force_upcast=bool(values.get("force_upcast", True)),
        mid_block_add_attention=values.get("mid_block_add_attention", True),
        use_quant_conv=values.get("use_quant_conv", True),
        use_post_quant_conv=values.get("use_post_quant_conv", True),
    )


def autoencoder_json(config: AutoencoderConfig) -> dict[str, Any]:
    """What `autoencoder_config` reads."""
    num = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        **asdict(config),
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * num,
        "up_block_types": ["UpDecoderBlock2D"] * num,
    }


def t5_config(values: Mapping[str, Any]) -> T5Config:
    """Read the config of a T5 v1.1 encoder; raises MismatchError for a T5 of another build."""
    _check_fixed(values, _T5_FIXED, "text encoder")
    _check_fixed(values, {"quantization_config": (None, QUANTIZATION)}, "text encoder")
    if "feed_forward_proj" not in values:
        raise MismatchError("T5 v1.1 says feed_forward_proj gated-gelu, this config says nothing")
    missing = [
        key for key in ("d_model", "d_kv", "d_ff", "num_layers", "num_heads") if key not in values
    ]
    if missing:
        raise MismatchError(f"the config of the text encoder lacks {', '.join(missing)}")
    fields = asdict(T5Config())
    return _made(T5Config, **{key: values.get(key, default) for key, default in fields.items()})


def t5_json(config: T5Config) -> dict[str, Any]:
    """What `t5_config` reads, and transformers too."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        **asdict(config),
        "num_decoder_layers": config.num_layers,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "is_encoder_decoder": True,
        "use_cache": False,
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def whole(key: str, value: Any) -> int:
    """A whole number above 0; raises MismatchError."""
    if not is_whole(value):
        raise MismatchError(f"{key} must be a whole number above 0, got {value!r}")
    return int(value)


def _made(kind: type[C], **values: Any) -> C:
    """A config of these values, each of the kind that its field is; raises MismatchError."""
    for each in fields(kind):  # type: ignore[arg-type]
        value = values[each.name]
        if each.type is int:
            whole(each.name, value)
        elif each.type == tuple[int, ...]:
            if not isinstance(value, tuple) or not value:
                raise MismatchError(f"{each.name} must be a list of whole numbers, got {value!r}")
            for number in value:
                whole(each.name, number)
        elif each.type is bool and not isinstance(value, bool):
            raise MismatchError(f"{each.name} must be true or false, got {value!r}")
        elif each.type is float or (each.type == float | None and value is not None):
            if not is_number(value):
                raise MismatchError(f"{each.name} must be a number, got {value!r}")
            values[each.name] = float(value)
    return kind(**values)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a component's folder."""
    return read_json(folder / "config.json")


def _transformer_defaults() -> set[str]:
    own = set(TransformerConfig.__dataclass_fields__) - set(_OURS)
    return own | {"cross_attention_dim"}


def _compression(values: Mapping[str, Any] | None) -> KVCompression | None:
    if values is None:
        return None
    try:
        return KVCompression(layers=tuple(values["layers"]), ratio=int(values["ratio"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise MismatchError(
            f'kv_compression must be {{"layers": [...], "ratio": 2}}, got {values}'
        ) from error


def _check_class(values: Mapping[str, Any], known: tuple[str, ...]) -> None:
    given = values.get("_class_name", known[0])
    if given not in known:
        raise MismatchError(f"the config must be of {' or '.join(known)}, it is of {given}")


def _check_fixed(values: Mapping[str, Any], table: dict[str, tuple[Any, ...]], what: str) -> None:
    for key, allowed in table.items():
        if key in values and values[key] not in allowed:
            raise MismatchError(
                f"the {what} can have {key} {' or '.join(map(repr, allowed))} only, "
                f"got {values[key]!r}"
            )


def _check_unknown(values: Mapping[str, Any], known: set[str], what: str) -> None:
    """A key that is not known and not empty may change the network: better to stop."""
    for key, value in values.items():
        if key not in known and not key.startswith("_") and value not in (None, False):
            raise MismatchError(
                f"the config of the {what} has {key} {value!r}, which pixsigma does not know; "
                "if it changes nothing, take it out of config.json"
            )


def read_words(tokenizer: Path) -> frozenset[str] | None:
    """All words of the captions that a small model was shown, where its folder tells them.

    Raises CorruptWeightsError.
    """
    file = tokenizer / WORDS
    if not file.is_file():
        return None
    try:
        return frozenset(file.read_text("utf-8").split())
    except (OSError, ValueError) as error:
        raise CorruptWeightsError(f"{file} must be text in UTF-8: {error}") from error


def write_words(tokenizer: Path, words: frozenset[str] | None) -> None:
    """What `read_words` reads; raises OutputError."""
    if words is not None:
        with atomic_write(tokenizer / WORDS) as temp:
            temp.write_text("".join(f"{word}\n" for word in sorted(words)), "utf-8")
