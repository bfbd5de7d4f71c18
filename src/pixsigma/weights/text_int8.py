"""A text encoder in 8 bits on disk: written layer by layer, so that no copy of it is in memory."""

from pathlib import Path

from pixsigma.errors import InputError, MismatchError
from pixsigma.models.quantized import quantized_layers
from pixsigma.models.text import Tokenizer
from pixsigma.weights import config_files, folder
from pixsigma.weights.files import Tensors, save_tensors, write_json
from pixsigma.weights.keymaps import T5
from pixsigma.weights.locate import FileChoice
from pixsigma.weights.quantized import in_int8
from pixsigma.weights.streaming import in_order


def save_int8_text(source: str | Path, target: str | Path) -> Path:
    """Write `text_encoder/` and `tokenizer/` of a model with the matrices in 8 bits.

    Names are ours, one file a layer, the index last; returns `target`. Raises WeightsError,
    InputError or OutputError.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        raise InputError(f"source and target must differ, both are {target}")
    config, tensors, _ = folder.open_text_encoder(source)
    ours = T5.to_ours(tensors)
    if quantized_layers(ours):
        raise MismatchError(f"the text encoder of {source} is in 8 bits already")
    tokens = folder.folder_tokens(source)
    tokenizer = Tokenizer(folder.vocabulary_file(source / "tokenizer"), tokens)
    words = config_files.read_words(source / "tokenizer")
    quantised = in_int8(ours, [key.removesuffix(".weight") for key in in_order(config)])
    folder.save_tokenizer(target, tokenizer, words)
    part = target / "text_encoder"
    owner: dict[str, str] = {}
    for name, keys in shards_of(quantised).items():
        save_tensors({key: quantised[key] for key in keys}, part / name)
        owner |= dict.fromkeys(keys, name)
    told = config_files.t5_json(config) | {"quantization_config": config_files.QUANTIZATION}
    write_json(part / "config.json", told)
    index = FileChoice().names("text_encoder", ".safetensors")[1]
    write_json(part / index, {"metadata": {}, "weight_map": owner})
    return target


def shards_of(tensors: Tensors) -> dict[str, list[str]]:
    """File to names of tensors: a file for each layer and one for the rest."""
    groups: dict[str, list[str]] = {}
    for key in tensors.specs:
        head, *tail = key.split(".")
        groups.setdefault(tail[0] if head == "blocks" else "", []).append(key)
    total = len(groups)
    return {
        f"model-{i + 1:05}-of-{total:05}.safetensors": keys
        for i, keys in enumerate(groups.values())
    }
