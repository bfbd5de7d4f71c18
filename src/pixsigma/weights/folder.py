"""Folders in diffusers layout: read part by part, and written so that diffusers reads them too."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pixsigma.config import AutoencoderConfig, ScheduleConfig, T5Config, TransformerConfig
from pixsigma.diffusion.samplers import DEFAULT_SAMPLER, get_sampler
from pixsigma.diffusion.samplers.base import Sampler
from pixsigma.diffusion.samplers.published import config_of, sampler_from_config
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import (
    InputError,
    MismatchError,
    MissingWeightsError,
)
from pixsigma.given import expanded
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.pieces import JsonPieces, SentencePieces
from pixsigma.models.quantized import by_others, fine_layers, has_int8, quantized_layers
from pixsigma.models.t5 import T5Encoder
from pixsigma.models.text import T5TextEncoder, Tokenizer
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.presets import GUIDANCE_SCALE, MAX_TOKENS, Variant
from pixsigma.weights import config_files
from pixsigma.weights.detect import Detected, detect_transformer, variant_of
from pixsigma.weights.files import (
    Spec,
    Tensors,
    atomic_write,
    open_tensors,
    read_json,
    save_tensors,
    write_json,
)
from pixsigma.weights.index import INDEX, folder_variant, index_json
from pixsigma.weights.keymaps import AUTOENCODER, DIFFUSERS, T5, transformer_names
from pixsigma.weights.load import load_into
from pixsigma.weights.locate import FileChoice, find_weights
from pixsigma.weights.prompt_cache import CachedT5, fingerprint
from pixsigma.weights.quantized import builder, fine_of, in_int8, int8_layers
from pixsigma.weights.streaming import StreamedT5, open_streamed
from pixsigma.weights.told import described, description, told_variant

PARTS = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler")
"""Folders inside a model's folder."""

PART_CLASSES = {
    "transformer": config_files.TRANSFORMER_CLASSES,
    "text_encoder": ("T5EncoderModel",),
    "vae": ("AutoencoderKL",),
}
"""Classes by which a folder is known to be the part itself."""


@dataclass(frozen=True, kw_only=True)
class OpenTransformer:
    """A transformer's file before its weights are read."""

    detected: Detected
    tensors: Tensors

    @property
    def config(self) -> TransformerConfig:
        """What the network is."""
        return self.detected.config

    @property
    def int8_layers(self) -> tuple[str, ...]:
        """Layers that the file has in 8 bits."""
        return quantized_layers(self.tensors)

    def expected(self) -> dict[str, Spec]:
        """Our names and the shapes that the network has."""
        with torch.device("meta"):
            build = builder(self.config, self.int8_layers, fine_layers(self.tensors))
            return Tensors.of(build().state_dict()).specs

    def load(
        self, dtype: torch.dtype | None = None, *, int8: str | None = None, keep: str | None = None
    ) -> PixArtTransformer:
        """Read the weights; raises MismatchError.

        `int8` is a mode that quantises layer by layer while reading, but for layers whose names
        match `keep`; what is in 8 bits computes in float32 whatever `dtype` says.
        """
        layers = self.int8_layers
        if not (int8 or layers):
            plain = partial(PixArtTransformer, self.config)
            return load_into(plain, self.tensors, self.detected.keymap, dtype=dtype)
        ours = self.detected.keymap.to_ours(self.tensors)
        fresh = int8_layers(ours, keep) if int8 else ()
        fine = fine_of(fresh, int8) if int8 else ()
        build = builder(self.config, (*layers, *fresh), (*fine_layers(self.tensors), *fine))
        return load_into(build, in_int8(ours, fresh, fine), dtype=torch.float32)


def open_transformer(
    path: Path | str,
    *,
    choice: FileChoice | None = None,
    resolution: int | None = None,
    variant: Variant | None = None,
) -> OpenTransformer:
    """Open a model's folder, a transformer's folder or a weights file, and tell what it is.

    The hints `resolution` and `variant` serve files that do not tell; a config.json goes before
    them. Raises WeightsError.
    """
    path = Path(path)
    if not path.is_dir():
        tensors = open_tensors(path)
        found = described(tensors) or detect_transformer(
            tensors, path.name, resolution=resolution, variant=variant
        )
        return OpenTransformer(detected=found, tensors=tensors)
    folder = _part_folder(path, "transformer")
    config = config_files.transformer_config(config_files.read_config(folder))
    tensors = open_tensors(find_weights(folder, "transformer", choice))
    told = variant or told_variant(path, tensors) or variant_of({}, path.name, config)
    found = Detected(config=config, variant=told, keymap=transformer_names(tensors))
    return OpenTransformer(detected=found, tensors=tensors)


def read_transformer(
    path: Path | str, *, dtype: torch.dtype | None = None, choice: FileChoice | None = None
) -> PixArtTransformer:
    """Load a transformer from a folder or a file; `dtype` None keeps the file's."""
    return open_transformer(path, choice=choice).load(dtype)


def read_text_encoder(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    max_tokens: int | None = None,
    choice: FileChoice | None = None,
    stream: bool | int = False,
    prompt_cache: Path | str | None = None,
) -> T5TextEncoder:
    """Load T5 and its tokenizer from a folder with `text_encoder/` and `tokenizer/`.

    Under fp16 the last linear layers stay fp32, as T5 needs. `stream` leaves the matrices in the
    file and reads them as they are used; a number is how many bytes of them may stay then. One in
    8 bits is opened this way in any case, to stay unless told otherwise. `prompt_cache` is a folder
    for answers: the encoder is opened only for prompts that are not there. Raises WeightsError or
    InputError.
    """
    path = Path(path)
    folder = _part_folder(path, "text_encoder")
    tokenizer = Tokenizer(vocabulary_file(path / "tokenizer"), max_tokens or folder_tokens(path))
    words = config_files.read_words(path / "tokenizer")
    config = config_files.t5_config(config_files.read_config(folder))
    file = find_weights(folder, "text_encoder", choice)
    opened = partial(_open_t5, file, config, dtype, stream)
    if prompt_cache is None:
        return T5TextEncoder(tokenizer, opened(), words)
    tensors = open_tensors(file)
    identity = fingerprint(T5.to_ours(tensors), config)
    kept = dtype or next(iter(tensors.specs.values())).dtype
    cached = CachedT5(expanded(prompt_cache), config, identity, kept, opened)
    return T5TextEncoder(tokenizer, cached, words)


def _open_t5(
    file: Path, config: T5Config, dtype: torch.dtype | None, stream: bool | int
) -> T5Encoder | StreamedT5:
    if stream:
        return open_streamed(file, config, dtype, int(stream))
    tensors = open_tensors(file)
    if quantized_layers(tensors):
        return open_streamed(file, config, dtype, tensors.num_bytes)
    kept = partial(T5Encoder.storage_dtype, dtype=dtype) if dtype else None
    return load_into(partial(T5Encoder, config), tensors, T5, dtype=kept)


def vocabulary_file(folder: Path) -> Path:
    """The sentencepiece file, else the JSON that transformers 5 writes in its place."""
    spiece, table = folder / SentencePieces.file_name, folder / JsonPieces.file_name
    return table if table.is_file() and not spiece.is_file() else spiece


def folder_tokens(path: Path) -> int:
    """How many tokens the model reads: our key in `tokenizer_config.json`, else 300 or 120."""
    file = path / "tokenizer" / "tokenizer_config.json"
    told = read_json(file).get("max_tokens") if file.is_file() else None
    if told is None:
        return MAX_TOKENS[folder_variant(path) or "sigma"]
    return config_files.whole("max_tokens", told)


def read_autoencoder(
    path: Path | str, *, dtype: torch.dtype | None = None, choice: FileChoice | None = None
) -> KLAutoencoder:
    """Load the autoencoder from a model's folder or its own; raises WeightsError."""
    folder = _part_folder(Path(path), "vae")
    config = config_files.autoencoder_config(config_files.read_config(folder))
    tensors = open_tensors(find_weights(folder, "vae", choice))
    return load_into(partial(KLAutoencoder, config), tensors, AUTOENCODER, dtype=dtype)


def latent_pixels(*folders: Path | None) -> int:
    """Pixels a side for one latent, by the first folder with an autoencoder; 8 where none has one.

    Raises WeightsError.
    """
    for folder in folders:
        if folder is not None and (folder / "vae" / "config.json").is_file():
            values = config_files.read_config(folder / "vae")
            return config_files.autoencoder_config(values).factor
    return AutoencoderConfig().factor


def open_text_encoder(
    path: Path | str, choice: FileChoice | None = None
) -> tuple[T5Config, Tensors, Path]:
    """Config, unread tensors and file of the text encoder; raises WeightsError."""
    folder = _part_folder(Path(path), "text_encoder")
    file = find_weights(folder, "text_encoder", choice)
    return config_files.t5_config(config_files.read_config(folder)), open_tensors(file), file


def open_autoencoder(
    path: Path | str, choice: FileChoice | None = None
) -> tuple[AutoencoderConfig, Tensors]:
    """Config and unread tensors of the autoencoder; raises WeightsError."""
    folder = _part_folder(Path(path), "vae")
    config = config_files.autoencoder_config(config_files.read_config(folder))
    return config, open_tensors(find_weights(folder, "vae", choice))


def read_sampler(path: Path | str) -> tuple[Sampler, NoiseSchedule]:
    """The published sampler of a folder, or ours by default where it names none."""
    file = Path(path) / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return get_sampler(DEFAULT_SAMPLER), NoiseSchedule(ScheduleConfig())
    sampler, schedule = sampler_from_config(read_json(file))
    return sampler, NoiseSchedule(schedule)


def save_folder(
    folder: Path | str,
    *,
    transformer: PixArtTransformer,
    text_encoder: T5TextEncoder | None = None,
    autoencoder: KLAutoencoder | None = None,
    sampler: Sampler | None = None,
    schedule: NoiseSchedule | None = None,
    variant: Variant = "sigma",
    guidance_scale: float = GUIDANCE_SCALE,
) -> None:
    """Write a model's folder in diffusers layout; parts that are None are left out.

    Every file is written whole or not at all, the index last. Raises OutputError, or InputError for
    a sampler that diffusers has no words for.
    """
    folder = Path(folder)
    # Told before anything is written, since this may refuse.
    published = config_of(
        sampler or get_sampler(DEFAULT_SAMPLER), schedule or NoiseSchedule(ScheduleConfig())
    )
    save_transformer(transformer, folder / "transformer", variant)
    if text_encoder is not None:
        save_text_encoder(text_encoder, folder)
    if autoencoder is not None:
        save_autoencoder(autoencoder, folder / "vae")
    write_json(folder / "scheduler" / "scheduler_config.json", published)
    index = index_json(
        variant,
        published["_class_name"],
        text=text_encoder is not None,
        vae=autoencoder is not None,
        guidance_scale=guidance_scale,
    )
    write_json(folder / INDEX, index)


def save_transformer(
    transformer: PixArtTransformer, folder: Path | str, variant: Variant | None = None
) -> None:
    """Write `config.json` and weights in diffusers names, with the family where it is told; raises
    OutputError.

    A network in 8 bits has our own names, and is not for diffusers. Raises InputError for weights
    of torchao.
    """
    if by_others(transformer):
        raise InputError(
            "weights that torchao quantised are not saved: save the model before quantising, and "
            "give quantize= again when it is loaded; 'int8' can be saved"
        )
    if has_int8(transformer):
        config = config_files.transformer_json(transformer.config)
        config["quantization_config"] = config_files.QUANTIZATION
        tensors = Tensors.of(transformer.state_dict())
    else:
        config = config_files.transformer_json(transformer.config)
        tensors = DIFFUSERS.to_theirs(transformer.state_dict())
    told = description(transformer.config, variant) if variant else None
    _save_part(Path(folder), tensors, config, "transformer", told)


def save_text_encoder(text_encoder: T5TextEncoder, folder: Path | str) -> None:
    """Write `text_encoder/` and `tokenizer/` into a model's folder; raises OutputError."""
    folder, encoder = Path(folder), text_encoder.encoder
    tensors, config = Tensors.of(encoder.state_dict()), config_files.t5_json(encoder.config)
    if quantized_layers(tensors):
        config["quantization_config"] = config_files.QUANTIZATION
    else:
        tensors = T5.to_theirs(tensors)
    _save_part(folder / "text_encoder", tensors, config, "text_encoder")
    save_tokenizer(folder, text_encoder.tokenizer, text_encoder.words)


def save_tokenizer(folder: Path, tokenizer: Tokenizer, words: frozenset[str] | None) -> None:
    """Write `tokenizer/` of a model; raises OutputError."""
    pieces = tokenizer.pieces
    with atomic_write(folder / "tokenizer" / pieces.file_name) as temp:
        temp.write_bytes(pieces.content())
    config_files.write_words(folder / "tokenizer", words)
    write_json(
        folder / "tokenizer" / "tokenizer_config.json",
        {
            "tokenizer_class": "T5Tokenizer",
            "model_max_length": 512,
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "extra_ids": 100,
            "max_tokens": tokenizer.max_length,
        },
    )


def save_autoencoder(autoencoder: KLAutoencoder, folder: Path | str) -> None:
    """Write `config.json` and weights; raises OutputError."""
    tensors = Tensors.of(autoencoder.state_dict())
    _save_part(Path(folder), tensors, config_files.autoencoder_json(autoencoder.config), "vae")


def _save_part(
    folder: Path,
    tensors: Tensors,
    config: Mapping[str, Any],
    part: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    name = FileChoice().names(part, ".safetensors")[0]
    save_tensors(tensors, folder / name, metadata=metadata)
    write_json(folder / "config.json", config)


def _part_folder(path: Path, part: str) -> Path:
    """`path/part`, or `path` itself where it is the part's own folder."""
    if (path / part).is_dir():
        return path / part
    if (path / "config.json").is_file() and _class_of(path) in PART_CLASSES[part]:
        return path
    if not path.is_dir():
        raise MissingWeightsError(f"a model's folder must exist, there is none at {path}")
    there = ", ".join(name for name in PARTS if (path / name).is_dir()) or "no part of a model"
    raise MissingWeightsError(
        f"{path} has no {part}/, it has {there}; say where {part} comes from (--text-and-vae, "
        "text_and_vae=), or pass the part itself"
    )


def _class_of(folder: Path) -> str:
    config = config_files.read_config(folder)
    return str(config.get("_class_name") or (config.get("architectures") or [""])[0])


def check_latents(transformer: TransformerConfig, autoencoder: KLAutoencoder) -> None:
    """Raise MismatchError where transformer and autoencoder do not speak of the same latents."""
    given = autoencoder.config.latent_channels
    if given != transformer.in_channels:
        raise MismatchError(
            f"the transformer takes latents of {transformer.in_channels} channels, "
            f"the autoencoder makes {given}; take the autoencoder that it was trained with"
        )
