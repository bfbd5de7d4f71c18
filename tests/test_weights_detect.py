"""What a file is, told by names and shapes; and by a published config.json."""

from dataclasses import replace

import pytest
import torch
from tests.small import KINDS, SIGMA, TEXT, VAE, small_transformer

from pixsigma.config import KVCompression, TransformerConfig
from pixsigma.errors import MismatchError
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.presets import PRESETS
from pixsigma.weights.config_files import (
    autoencoder_config,
    autoencoder_json,
    t5_config,
    t5_json,
    transformer_config,
    transformer_json,
)
from pixsigma.weights.detect import detect_transformer
from pixsigma.weights.files import Tensors
from pixsigma.weights.keymaps import DIFFUSERS

XL = TransformerConfig()
CAPTIONS = "y_embedder.y_embedding"


def shapes(config: TransformerConfig, **extra: tuple[int, ...]) -> Tensors:
    with torch.device("meta"):
        state = PixArtTransformer(config).state_dict()
        state |= {key.replace("__", "."): torch.empty(shape) for key, shape in extra.items()}
    return Tensors.of(state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["official", "diffusers"])
def test_every_kind_is_detected(kind: str, names: str):
    config = KINDS[kind]
    tensors = Tensors.of(small_transformer(config).state_dict())
    found = detect_transformer(
        DIFFUSERS.to_theirs(tensors) if names == "diffusers" else tensors, "x-512.pth"
    )
    if kind == "alpha":
        assert (found.variant, found.config.sample_size) == ("alpha", 512 // 8)
        found = detect_transformer(tensors)
    assert found.config == config


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.file])
def test_the_published_files_are_detected_by_their_names(name: str):
    preset = PRESETS[name]
    found = detect_transformer(shapes(preset.transformer), preset.file.split("/")[-1])
    assert found.config == preset.transformer
    assert (found.variant, found.config.sample_size) == (preset.variant, preset.resolution // 8)


def test_other_depths_are_detected():
    deep = replace(XL, num_layers=42)
    assert detect_transformer(shapes(deep), resolution=1024).config == deep


def test_compressed_layers_and_ratio_are_detected():
    config = replace(XL, kv_compression=KVCompression(layers=tuple(range(14, 28)), ratio=4))
    assert detect_transformer(shapes(config), resolution=1024).config == config


def test_the_position_table_of_older_files_tells_the_resolution():
    found = detect_transformer(shapes(XL, pos_embed=(1, 128 * 128, 1152)), "renamed-512.pth")
    assert found.config.sample_size == 2048 // 8
    assert found.config.interpolation_scale == 4.0


def test_the_caption_table_tells_alpha_from_sigma():
    low = replace(XL, sample_size=32)
    alpha = detect_transformer(shapes(low, y_embedder__y_embedding=(120, 4096)), "a-256.pth")
    sigma = detect_transformer(
        shapes(low, y_embedder__y_embedding=(300, 4096)), "PixArt-XL-256.pth"
    )
    assert (alpha.variant, alpha.config.interpolation_scale) == ("alpha", 1.0)
    assert (sigma.variant, sigma.config.interpolation_scale) == ("sigma", 0.5)


def test_prefixes_of_other_programs_are_seen_through():
    plain = shapes(SIGMA)
    wrapped = Tensors(
        {f"model.diffusion_model.{key}": spec for key, spec in plain.specs.items()},
        lambda key: plain[key.removeprefix("model.diffusion_model.")],
    )
    assert detect_transformer(wrapped, "512").config == SIGMA


def test_hints_go_before_the_name():
    found = detect_transformer(shapes(SIGMA), "512.pth", resolution=256, variant="alpha")
    assert (found.config.sample_size, found.config.interpolation_scale) == (256 // 8, 1.0)


def test_a_resolution_that_nothing_tells_is_asked_for():
    with pytest.raises(MismatchError, match="pass resolution="):
        detect_transformer(shapes(SIGMA), "model-15120.pth")


def test_a_head_that_shapes_do_not_tell_is_asked_for():
    config = replace(SIGMA, num_attention_heads=2, attention_head_dim=64)
    with pytest.raises(MismatchError, match="attention_head_dim"):
        detect_transformer(shapes(config), "512")
    assert detect_transformer(shapes(config), "512", attention_head_dim=64).config == config


def test_other_networks_are_told():
    with pytest.raises(MismatchError, match="named blocks"):
        detect_transformer(Tensors.of({"down_blocks.0.weight": torch.zeros(1)}))
    with pytest.raises(MismatchError, match="no whole PixArt"):
        detect_transformer(Tensors.of({"blocks.0.attn.qkv.weight": torch.zeros(1)}))
    holed = shapes(replace(SIGMA, num_layers=3))
    kept = {k: v for k, v in holed.specs.items() if not k.startswith("blocks.1.")}
    with pytest.raises(MismatchError, match="without a gap"):
        detect_transformer(Tensors(kept, holed.__getitem__), "512")


# Published config.json


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_config_is_read_as_it_was_written(kind: str):
    assert transformer_config(transformer_json(KINDS[kind])) == KINDS[kind]


def test_other_configs_are_read_as_they_were_written():
    assert autoencoder_config(autoencoder_json(VAE)) == VAE
    assert t5_config(t5_json(TEXT)) == TEXT


OLD = {
    "_class_name": "Transformer2DModel",
    "norm_type": "ada_norm_single",
    "caption_channels": 4096,
}


def test_what_a_transformer_config_leaves_out_is_what_diffusers_takes():
    large = transformer_config({**OLD, "sample_size": 128})
    assert large.use_additional_conditions
    assert large.interpolation_scale == 2.0
    small = transformer_config({**OLD, "sample_size": 32, "out_channels": None})
    assert not small.use_additional_conditions
    assert (small.interpolation_scale, small.out_channels) == (1.0, 4)
    told = {"sample_size": 128, "use_additional_conditions": False, "interpolation_scale": 0.5}
    config = transformer_config({**OLD, **told})
    assert not config.use_additional_conditions
    assert config.interpolation_scale == 0.5


def test_an_autoencoder_config_without_a_scale_is_sd15():
    config = autoencoder_config({"block_out_channels": [8], "norm_num_groups": 4})
    assert config.scaling_factor == 0.18215
    assert config.force_upcast


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "SD3Transformer2DModel"},
        {"norm_type": "ada_norm_zero"},
        {"cross_attention_dim": 64},
        {"caption_channels": None},
        {"quantization_config": {"bits": 4}},
        {"kv_compression": {"layer": [1]}},
    ],
)
def test_a_transformer_config_that_we_cannot_run_is_refused(change: dict[str, object]):
    with pytest.raises(MismatchError):
        transformer_config({**transformer_json(SIGMA), **change})


def test_other_configs_that_we_cannot_run_are_refused():
    with pytest.raises(MismatchError, match="feed_forward_proj"):
        t5_config({**t5_json(TEXT), "feed_forward_proj": "relu"})
    with pytest.raises(MismatchError, match="num_heads"):
        t5_config({k: v for k, v in t5_json(TEXT).items() if k != "num_heads"})
    with pytest.raises(MismatchError, match="AutoencoderTiny"):
        autoencoder_config({"_class_name": "AutoencoderTiny"})
    with pytest.raises(MismatchError, match="latents_mean"):
        autoencoder_config({**autoencoder_json(VAE), "latents_mean": [0.0]})
