"""Files that are damaged, doubled or of another kind: every one ends in an error of ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.small import (
    KINDS,
    SIGMA,
    small_autoencoder,
    small_pipeline,
    small_text_encoder,
    small_transformer,
)
from torch import Tensor

from pixsigma.diffusion.samplers.published import sampler_from_config
from pixsigma.errors import (
    CorruptWeightsError,
    InputError,
    MismatchError,
    MissingWeightsError,
    OutputError,
    WeightsError,
)
from pixsigma.images import read_credentials, read_settings, write_picture
from pixsigma.models.controlnet import ControlNet
from pixsigma.signing import Signer
from pixsigma.weights import config_files
from pixsigma.weights.adapters import read_adapter, scaling_of
from pixsigma.weights.build import load_components, resolve
from pixsigma.weights.controls import outline_of, read_control, save_control
from pixsigma.weights.convert import convert
from pixsigma.weights.files import open_tensors, save_tensors
from pixsigma.weights.folder import (
    folder_tokens,
    open_transformer,
    read_text_encoder,
    read_transformer,
    save_folder,
)
from pixsigma.weights.info import describe
from pixsigma.weights.keymaps import DIFFUSERS
from pixsigma.weights.load import load_into

PART = "blocks.0.attn.qkv.weight"
Q, K, V = (f"transformer_blocks.0.attn1.to_{name}.weight" for name in "qkv")


def state() -> dict[str, Tensor]:
    return dict(small_transformer().state_dict())


def theirs() -> dict[str, Tensor]:
    return dict(DIFFUSERS.to_theirs(state()))


# What a model is stays told


@pytest.mark.parametrize("hint", [None, "alpha"])
def test_alpha_stays_alpha_in_every_layout(tmp_path: Path, hint: Any) -> None:
    name = "PixArt-XL-2-512x512.pth" if hint is None else "plain-512.pth"
    save_tensors(state(), tmp_path / name)
    convert(tmp_path / name, tmp_path / "folder", variant=hint)
    convert(tmp_path / "folder", tmp_path / "back-512.safetensors", "single")
    for found in (name, "folder", "folder/transformer", "back-512.safetensors"):
        told = describe(tmp_path / found, variant=hint if found == name else None)
        assert told.variant == "alpha", found


def test_a_part_alone_is_of_its_folders_family(tmp_path: Path) -> None:
    save_folder(tmp_path, transformer=small_transformer(KINDS["sigma"]), variant="alpha")
    assert open_transformer(tmp_path / "transformer").detected.variant == "alpha"
    index = json.loads((tmp_path / "model_index.json").read_text())
    save_file(theirs(), tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert open_transformer(tmp_path / "transformer").detected.variant == "alpha"
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": ["a"]}))
    with pytest.raises(InputError, match="names \\['a'\\]"):
        open_transformer(tmp_path)


# Tensors that do not fit


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({Q: torch.zeros(10, 72), K: torch.zeros(90, 72), V: torch.zeros(116, 72)}, "one shape"),
        ({K: torch.zeros(72, 8)}, "one shape"),
        ({K: torch.zeros(())}, "one shape"),
        ({f"module.{Q}": torch.ones(72, 72)}, "each tensor once"),
    ],
)
def test_parts_and_doubles_are_told(tmp_path: Path, change: dict[str, Tensor], said: str) -> None:
    save_file(theirs() | change, tmp_path / "a-512.safetensors")
    with pytest.raises(MismatchError, match=said):
        read_transformer(tmp_path / "a-512.safetensors")


@pytest.mark.parametrize("kind", [torch.int32, torch.int8, torch.bool])
def test_weights_that_are_no_numbers_with_a_point_are_told(
    tmp_path: Path, kind: torch.dtype
) -> None:
    wrong = state() | {PART: torch.zeros(216, 72, dtype=kind)}
    with pytest.raises(MismatchError, match=rf"{PART} is of {str(kind)[6:]}, expected float32"):
        load_into(lambda: small_transformer(SIGMA), wrong)
    save_folder(tmp_path, transformer=small_transformer(), text_encoder=small_text_encoder())
    file = tmp_path / "text_encoder" / "model.safetensors"
    tensors = dict(open_tensors(file))
    name = "encoder.block.0.layer.0.layer_norm.weight"
    save_file(tensors | {name: tensors[name].to(kind)}, file)
    for stream in (False, True):
        with pytest.raises(MismatchError, match=r"layer_norm\.weight is of"):
            read_text_encoder(tmp_path, stream=stream)


# Files that are not whole


def old_pickle(folder: Path) -> bytes:
    torch.save(state(), folder / "old.pth", _use_new_zipfile_serialization=False)
    return (folder / "old.pth").read_bytes()


BROKEN: dict[str, Callable[[Path], bytes]] = {
    "words": lambda _: b"Repository not found",
    "nothing": lambda _: b"",
    **{
        f"cut at {share}": lambda folder, share=share: (whole := old_pickle(folder))[
            : int(len(whole) * share)
        ]
        for share in (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999)
    },
}


@pytest.mark.parametrize("way", BROKEN)
def test_a_pickle_that_is_none_is_told(tmp_path: Path, way: str) -> None:
    (tmp_path / "x-512.pth").write_bytes(BROKEN[way](tmp_path))
    with pytest.raises(WeightsError):
        open_tensors(tmp_path / "x-512.pth")


@pytest.mark.parametrize("inner", [None, [], torch.zeros(2)])
def test_a_state_that_is_no_dictionary_is_told(tmp_path: Path, inner: Any) -> None:
    torch.save({"state_dict": inner}, tmp_path / "a.pth")
    with pytest.raises(MismatchError, match="must be a dictionary of tensors"):
        open_tensors(tmp_path / "a.pth")


def test_indexes_and_metadata_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    index = tmp_path / "self.index.json"
    index.write_text(json.dumps({"weight_map": {"x": index.name}}))
    with pytest.raises(CorruptWeightsError, match="must name weights files"):
        open_tensors(index)
    index.write_text("[" * 100_000)
    with pytest.raises(CorruptWeightsError, match="must be JSON"):
        open_tensors(index)
    for told in ("[]", "null", "[" * 100_000):
        file = tmp_path / "a-512.safetensors"
        save_file(state(), file, {"pixsigma.transformer": told, "pixsigma.variant": "sigma"})
        with pytest.raises(CorruptWeightsError, match=r"pixsigma\.transformer must"):
            open_transformer(file)


TRANSFORMER = config_files.transformer_json(SIGMA)
VAE = config_files.autoencoder_json(small_autoencoder().config)
TEXT = config_files.t5_json(small_text_encoder().encoder.config)


@pytest.mark.parametrize("wrong", ["a", None, [], 0, -1, True, 1.5, float("nan")])
@pytest.mark.parametrize(
    ("read", "config", "key"),
    [
        (config_files.transformer_config, TRANSFORMER, "sample_size"),
        (config_files.transformer_config, TRANSFORMER, "num_attention_heads"),
        (config_files.transformer_config, TRANSFORMER, "patch_size"),
        (config_files.transformer_config, TRANSFORMER, "num_layers"),
        (config_files.transformer_config, TRANSFORMER, "caption_channels"),
        (config_files.autoencoder_config, VAE, "latent_channels"),
        (config_files.autoencoder_config, VAE, "block_out_channels"),
        (config_files.autoencoder_config, VAE, "down_block_types"),
        (config_files.t5_config, TEXT, "d_model"),
    ],
)
def test_numbers_of_configs_are_checked(
    read: Callable[[Any], Any], config: dict[str, Any], key: str, wrong: Any
) -> None:
    with pytest.raises(MismatchError, match=key):
        read(config | {key: wrong})


def test_other_small_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="interpolation_scale must be a number"):
        config_files.transformer_config(TRANSFORMER | {"interpolation_scale": "x"})
    with pytest.raises(MismatchError, match="use_quant_conv must be true or false"):
        config_files.autoencoder_config(VAE | {"use_quant_conv": "x"})
    for wrong in ("abc", -5, 0):
        (tmp_path / "tokenizer").mkdir(exist_ok=True)
        (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(
            json.dumps({"max_tokens": wrong})
        )
        with pytest.raises(MismatchError, match="max_tokens"):
            folder_tokens(tmp_path)
    (tmp_path / "tokenizer" / "words.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CorruptWeightsError, match="UTF-8"):
        config_files.read_words(tmp_path / "tokenizer")
    with pytest.raises(InputError, match="num_train_timesteps must be a number"):
        sampler_from_config({"_class_name": "DDIMScheduler", "num_train_timesteps": None})


@pytest.mark.parametrize("name", ["x" * 300, "~nouser/x"])
def test_names_that_no_file_can_have_are_told(name: str) -> None:
    with pytest.raises(MissingWeightsError):
        resolve(name)
    with pytest.raises(MissingWeightsError):
        load_components("mini", text_and_vae=name)
    with pytest.raises(MissingWeightsError):
        read_adapter(name, small_transformer())
    with pytest.raises(MissingWeightsError):
        outline_of(name)


def test_text_and_vae_may_be_whatever_a_model_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"text_encoder": small_text_encoder(), "autoencoder": small_autoencoder()}
    save_folder(tmp_path / "run" / "model", transformer=small_transformer(), **parts)
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tensors(state(), tmp_path / "a-512.pth")
    for name in (tmp_path / "run", "~/run", "~/run/model"):
        found = load_components(tmp_path / "a-512.pth", text_and_vae=name)
        assert found.autoencoder is not None
    with pytest.raises(MissingWeightsError, match="text_and_vae is a folder"):
        load_components(tmp_path / "a-512.pth", text_and_vae=tmp_path / "a-512.pth")


def test_a_config_alone_is_no_part(tmp_path: Path) -> None:
    save_folder(tmp_path, transformer=small_transformer())
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(TEXT))
    assert [part.name for part in describe(tmp_path).parts] == ["transformer"]


# Adapters and controls


@pytest.mark.parametrize(
    "change",
    [
        {"alpha_pattern": ["a"]},
        {"alpha_pattern": {"(": 2}},
        {"rank_pattern": {"to_q": "x"}},
        {"r": "x"},
        {"init_lora_weights": "lora_ga"},
    ],
)
def test_configs_of_adapters_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(MismatchError):
        scaling_of({"r": 4, "lora_alpha": 4, "peft_type": "LORA"} | change, "adapter_config.json")


def test_a_scale_needs_a_rank() -> None:
    """Rotations have none and need none: their config says 0."""
    told = {"r": 0, "lora_alpha": 4, "rank_pattern": {"to_q": 2}}
    scaling = scaling_of(told, "adapter_config.json")
    assert scaling.of("blocks.0.to_q", None) == 2.0
    with pytest.raises(ValueError, match="its rank is 0"):
        scaling.of("blocks.0.to_k", None)


@pytest.mark.parametrize("told", ["[]", "null", "3"])
def test_metadata_of_adapters_is_checked(tmp_path: Path, told: str) -> None:
    file = tmp_path / "a.safetensors"
    pair = {
        "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 72),
        "transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.zeros(72, 2),
    }
    save_file(pair, file, {"lora_adapter_metadata": told})
    with pytest.raises(CorruptWeightsError, match="must hold a JSON object"):
        read_adapter(file, small_transformer())
    name = "transformer.transformer_blocks.0.attn1.to_q.alpha"
    save_file(pair | {name: torch.tensor(float("nan"))}, file)
    with pytest.raises(MismatchError, match="its scale is nan"):
        read_adapter(file, small_transformer())
    turned = {
        "transformer_blocks.0.attn2.to_q.oft_R.weight": torch.zeros(18, 6),
        "transformer_blocks.0.attn2.to_q.dora_scale": torch.ones(72, 1),
    }
    save_file(turned, file)
    with pytest.raises(MismatchError, match="beside a rotation"):
        read_adapter(file, small_transformer())


def test_an_adapter_does_not_go_over_to_another_transformer(tmp_path: Path) -> None:
    pipe = small_pipeline()
    pair = {
        "transformer_blocks.0.attn1.to_q.lora_A.weight": torch.randn(2, 72),
        "transformer_blocks.0.attn1.to_q.lora_B.weight": torch.randn(72, 2),
    }
    save_file(pair, tmp_path / "a.safetensors")
    pipe.load_lora(tmp_path / "a.safetensors")
    pipe.transformer = small_transformer()
    with pytest.raises(InputError, match="it was replaced"):
        list(pipe.stream("a", width=32, height=32, num_inference_steps=1))
    with pytest.raises(InputError, match="it was replaced"):
        pipe.fuse_loras()
    for weight in ("1", True, None):
        with pytest.raises(InputError, match="must be a finite number"):
            pipe.load_lora(tmp_path / "a.safetensors", "b", weight)  # type: ignore[arg-type]


def test_controls_with_gaps_or_odd_axes_are_told_at_once(tmp_path: Path) -> None:
    base, file = small_transformer(), tmp_path / "controlnet.safetensors"
    good = dict(ControlNet.copy_of(base, 1).state_dict())
    far = good | {"controlnet.1000000000.copied_block.x": torch.zeros(1)}
    save_control(far, base, file, kind="edges", variant="sigma")
    with pytest.raises(MismatchError, match="without a gap"):
        outline_of(file)
    odd = good | {"controlnet.0.after_proj.weight": torch.zeros(72)}
    save_control(odd, base, file, kind="edges", variant="sigma")
    with pytest.raises(MismatchError, match="of width none"):
        read_control(file, base, "sigma")
    save_file({"image_prompt.queries": torch.zeros(4)}, file)
    with pytest.raises(MismatchError, match="are a matrix"):
        outline_of(file)
    save_control(good, base, file, kind="edges", variant="sigma")
    lost = torch.full((72, 4, 2, 2), float("nan"))
    for wrong, said in ((torch.zeros(3), "four axes"), (lost, "nan")):
        tensors = dict(open_tensors(file)) | {"base_model.x_embedder.proj.weight": wrong}
        save_file(tensors, tmp_path / "wrong.safetensors", open_tensors(file).metadata)
        with pytest.raises(MismatchError, match=said):
            read_control(tmp_path / "wrong.safetensors", base, "sigma")


# Pictures


def test_a_picture_that_a_format_cannot_hold_is_told(tmp_path: Path) -> None:
    wide = Image.new("RGB", (16400, 16))
    with pytest.raises(OutputError, match="16383"):
        write_picture(wide, tmp_path, "a", {}, suffix=".webp")
    with pytest.raises(InputError, match=r"pictures are \.png"):
        write_picture(wide, tmp_path, "a", {}, suffix=".gif")
    (tmp_path / "noext").touch()
    with pytest.raises(InputError, match="got no ending"):
        read_credentials(tmp_path / "noext")
    assert [path.name for path in tmp_path.iterdir()] == ["noext"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_names_that_are_no_text_are_written_and_read(tmp_path: Path, suffix: str) -> None:
    settings = {"prompt": "a", "model": "/tmp/m\udcff"}
    path = write_picture(Image.new("RGB", (8, 8)), tmp_path, "a", settings, suffix=suffix)
    assert read_settings(path) == settings


def test_a_key_is_not_shown() -> None:
    assert "PRIVATE" not in repr(Signer(b"chain", b"-----BEGIN PRIVATE KEY-----", "es256"))
