"""Names and paths to components; folders there and back; what is missing is told."""

import json
from pathlib import Path

import pytest
import torch
from tests.small import KINDS, same, small_autoencoder, small_text_encoder, small_transformer

from pixsigma.config import ScheduleConfig
from pixsigma.diffusion.samplers import get_sampler
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError, MismatchError, MissingWeightsError, UnknownNameError
from pixsigma.presets import PRESETS, TEXT_AND_VAE, preset
from pixsigma.weights import hub
from pixsigma.weights.build import load_components
from pixsigma.weights.files import save_tensors, write_json
from pixsigma.weights.folder import save_folder, save_transformer
from pixsigma.weights.keymaps import T5
from pixsigma.weights.locate import FileChoice


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "whole"
    save_folder(
        folder,
        transformer=small_transformer(),
        text_encoder=small_text_encoder(),
        autoencoder=small_autoencoder(),
        sampler=get_sampler("dpm++2m-karras"),
        schedule=NoiseSchedule(ScheduleConfig(prediction_type="v_prediction")),
    )
    return folder


def test_a_saved_folder_loads_as_it_was(whole: Path):
    found = load_components(whole)
    assert same(found.transformer, small_transformer())
    assert same(found.autoencoder, small_autoencoder())
    assert same(found.text_encoder.encoder, small_text_encoder().encoder)
    assert found.sampler == get_sampler("dpm++2m-karras")
    assert found.schedule.config.prediction_type == "v_prediction"
    assert (found.variant, found.max_tokens) == ("sigma", 30)
    assert (
        found.resolution == found.transformer.config.sample_size * found.autoencoder.config.factor
    )
    assert (found.name, found.guidance_scale) == (str(whole), 4.5)
    # pixels are counted by the autoencoder that draws, not by one that was replaced
    replaced = load_components(whole, text_and_vae="mini", parts=())
    assert replaced.resolution == found.transformer.config.sample_size * 16


def test_a_folder_tells_the_guidance_that_suits_it(tmp_path: Path):
    save_folder(tmp_path, transformer=small_transformer(), guidance_scale=3.0)
    assert load_components(tmp_path, parts=("transformer",)).guidance_scale == 3.0


@pytest.mark.parametrize("told", [-1, 101, "3", True, None])
def test_a_guidance_that_is_none_is_refused(tmp_path: Path, told: object):
    save_folder(tmp_path, transformer=small_transformer())
    index = tmp_path / "model_index.json"
    assert "_guidance_scale" not in index.read_text()
    write_json(index, {**json.loads(index.read_text()), "_guidance_scale": told})
    with pytest.raises(MismatchError, match="must be a number from 0 to 100, got"):
        load_components(tmp_path, parts=("transformer",))


def test_only_the_parts_that_are_asked_for_are_read(whole: Path, tmp_path: Path):
    found = load_components(whole, parts=("autoencoder",))
    assert found.transformer is None
    assert found.text_encoder is None
    assert found.autoencoder is not None
    with pytest.raises(InputError, match="vae"):
        load_components(whole, parts=("vae",))


def test_a_type_is_for_all_but_the_overflowing_layers_of_t5(whole: Path):
    found = load_components(whole, dtype=torch.float16)
    assert found.transformer.dtype is torch.float16
    assert found.autoencoder.dtype is torch.float16
    assert found.text_encoder.encoder.embed.weight.dtype is torch.float16
    assert found.text_encoder.encoder.blocks[0].mlp.wo.weight.dtype is torch.float32


def test_alpha_is_told_by_the_index(tmp_path: Path):
    save_folder(tmp_path, transformer=small_transformer(KINDS["alpha"]), variant="alpha")
    found = load_components(tmp_path, parts=("transformer",))
    assert (found.variant, found.max_tokens, found.resolution) == ("alpha", 120, 1024)


def test_a_pipeline_of_another_family_is_told(tmp_path: Path):
    save_folder(tmp_path, transformer=small_transformer())
    write_json(tmp_path / "model_index.json", {"_class_name": "FluxPipeline"})
    with pytest.raises(UnknownNameError, match="FluxPipeline"):
        load_components(tmp_path)


def test_a_folder_with_only_a_transformer_says_what_is_missing(tmp_path: Path, whole: Path):
    save_folder(tmp_path, transformer=small_transformer())
    with pytest.raises(MissingWeightsError, match=r"no text_encoder/.*text_and_vae="):
        load_components(tmp_path)
    with pytest.raises(MissingWeightsError, match="no vae/"):
        load_components(tmp_path, parts=("transformer", "autoencoder"))
    assert same(load_components(tmp_path, text_and_vae=whole).autoencoder, small_autoencoder())


def test_a_folder_of_the_transformer_itself_is_enough(tmp_path: Path, whole: Path):
    save_transformer(small_transformer(), tmp_path)
    assert same(load_components(tmp_path, parts=["transformer"]).transformer, small_transformer())
    with pytest.raises(MissingWeightsError, match="no text_encoder/"):
        load_components(tmp_path)
    assert load_components(tmp_path, text_and_vae=whole).text_encoder is not None


@pytest.mark.parametrize("name", ["PixArt-512.pth", "any.safetensors"])
def test_a_file_takes_the_other_parts_from_elsewhere(tmp_path: Path, whole: Path, name: str):
    save_tensors(small_transformer().state_dict(), tmp_path / name)
    found = load_components(tmp_path / name, text_and_vae=whole, resolution=512)
    assert same(found.transformer, small_transformer())
    assert found.schedule.config.prediction_type == "v_prediction"


def test_the_text_encoder_that_is_asked_for_goes_before_that_of_the_folder(
    whole: Path, tmp_path: Path
):
    other = small_autoencoder()
    other.decoder.conv_out.bias.data.fill_(9)
    save_folder(
        tmp_path,
        transformer=small_transformer(),
        text_encoder=small_text_encoder(),
        autoencoder=other,
    )
    found = load_components(whole, text_and_vae=tmp_path)
    assert same(found.autoencoder, other)


def test_an_autoencoder_of_other_latents_is_refused(tmp_path: Path, whole: Path):
    config = json.loads((whole / "vae" / "config.json").read_text())
    from pixsigma.models.autoencoder import KLAutoencoder
    from pixsigma.weights.config_files import autoencoder_config
    from pixsigma.weights.folder import save_autoencoder

    wide = KLAutoencoder(autoencoder_config({**config, "latent_channels": 16}))
    save_autoencoder(wide, tmp_path / "vae")
    with pytest.raises(MismatchError, match="4 channels, the autoencoder makes 16"):
        load_components(whole, text_and_vae=tmp_path, parts=("autoencoder",))


def test_either_name_of_t5s_table_of_words_will_do():
    state = dict(T5.to_theirs(small_text_encoder().encoder.state_dict()))
    words = state.pop("shared.weight")
    for names in (["shared.weight"], ["encoder.embed_tokens.weight"], 2 * ["shared.weight"]):
        found = T5.to_ours({**state, **dict.fromkeys(names, words), "lm_head.weight": words})
        assert torch.equal(found["embed.weight"], words)
        assert "lm_head.weight" not in found


# Names


def test_a_name_that_is_nothing_is_told():
    with pytest.raises(MissingWeightsError, match=r"one of mini, .*nothing at no such thing"):
        load_components("no such thing")


@pytest.mark.parametrize("name", ["sigma-1024", "PixArt-alpha/x", PRESETS["sigma-512"].file])
def test_the_hub_without_a_network_says_how_to_proceed(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=r"--local-dir FOLDER.*mini"):
        load_components(name, offline=True)


class Hub:
    """The downloads that are asked for, answered with what a folder here has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def __call__(self, name: str, *, allow_patterns: list[str], **_: object) -> str:
        self.asked.append((name, tuple(allow_patterns)))
        return str(self.folder)


def test_only_what_is_needed_is_downloaded(whole: Path, monkeypatch: pytest.MonkeyPatch):
    answer = Hub(whole)
    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    assert same(load_components("some/model").transformer, small_transformer())
    [(name, patterns)] = answer.asked
    assert name == "some/model"
    assert "transformer/diffusion_pytorch_model.safetensors" in patterns
    assert "text_encoder/model-*-of-*.safetensors" in patterns
    assert not any(".bin" in p or "fp16" in p or p.endswith("/*.safetensors") for p in patterns)
    answer.asked.clear()
    hub.fetch_folder("some/model", ["vae"], choice=FileChoice(variant="fp16"))
    assert not any(p.startswith(("transformer/", "text_encoder/")) for p in answer.asked[0][1])
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in answer.asked[0][1]


def test_pickles_are_downloaded_only_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_transformer(small_transformer(), tmp_path / "transformer")
    (tmp_path / "text_encoder").mkdir()
    answer = Hub(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    hub.fetch_folder("some/model", ["transformer", "text_encoder"])
    first, second = (patterns for _, patterns in answer.asked)
    assert not any(".bin" in pattern for pattern in first)
    assert "text_encoder/pytorch_model.bin" in second
    assert not any(pattern.startswith("transformer/") for pattern in second)


def test_a_preset_without_text_encoder_takes_the_published_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_transformer(small_transformer(), tmp_path / "transformer")
    repositories = {PRESETS["sigma-2k"].hub: tmp_path, TEXT_AND_VAE["sigma"]: whole}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **_: str(repositories[name])
    )
    found = load_components("sigma-2k")
    assert same(found.autoencoder, small_autoencoder())
    assert found.name == "sigma-2k"


def test_presets_have_the_published_numbers():
    assert preset("sigma-256").transformer.interpolation_scale == 0.5
    assert preset("alpha-256").transformer.interpolation_scale == 1.0
    assert preset("sigma-2k").transformer.sample_size == 256
    assert preset("alpha-1024").transformer.use_additional_conditions
    published = [p for p in PRESETS.values() if p.name != "mini"]
    assert [p.max_tokens for p in published] == [300] * 4 + [120] * 3
    inside = load_components("mini", parts=())
    assert (preset("mini").max_tokens, preset("mini").resolution) == (
        inside.max_tokens,
        inside.resolution,
    )
    with pytest.raises(UnknownNameError, match="sigma-2k"):
        preset("sigma-4k")
