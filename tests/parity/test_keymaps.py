"""Names and folders against diffusers and transformers, with small random weights."""

import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tests.small import (
    KINDS,
    SPIECE,
    TEXT,
    VAE,
    same,
    small_autoencoder,
    small_text_encoder,
    small_transformer,
)

from pixsigma.config import TransformerConfig
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.weights.build import load_components
from pixsigma.weights.config_files import transformer_json
from pixsigma.weights.folder import read_autoencoder, read_transformer, save_folder
from pixsigma.weights.keymaps import DIFFUSERS


def their_transformer(config: TransformerConfig):
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    torch.manual_seed(3)
    return PixArtTransformer2DModel.from_config(transformer_json(config)).eval()


def their_autoencoder():
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from pixsigma.weights.config_files import autoencoder_json

    torch.manual_seed(4)
    return AutoencoderKL.from_config(autoencoder_json(VAE)).eval()


def their_text_encoder():
    from transformers import T5Config as TheirConfig
    from transformers import T5EncoderModel

    torch.manual_seed(5)
    config = TheirConfig(**asdict(TEXT), feed_forward_proj="gated-gelu")
    return T5EncoderModel(config).eval()


def answers(transformer, seed: int = 6) -> torch.Tensor:
    """What a network of either library makes of one input, without the mask's differences."""
    torch.manual_seed(seed)
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 20.0]), torch.randn(2, 5, 16)
    with torch.no_grad():
        if isinstance(transformer, PixArtTransformer):
            return transformer(x, t, text)
        return transformer(
            x, text, t, {"resolution": None, "aspect_ratio": None}, return_dict=False
        )[0]


def test_xl_has_the_published_number_of_parameters():
    with torch.device("meta"):
        state = PixArtTransformer(TransformerConfig()).state_dict()
    assert len(state) == 435
    assert sum(tensor.numel() for tensor in state.values()) == 610_856_096
    alpha = TransformerConfig(use_additional_conditions=True)
    with torch.device("meta"):
        state = PixArtTransformer(alpha).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 611_349_152


@pytest.mark.parametrize("kind", ["sigma", "alpha"])
def test_our_table_names_exactly_their_parameters(kind: str):
    theirs = their_transformer(KINDS[kind]).state_dict()
    table = DIFFUSERS.to_theirs(small_transformer(KINDS[kind]).state_dict())
    assert {k: spec.shape for k, spec in table.specs.items()} == {
        k: tuple(v.shape) for k, v in theirs.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_names_go_there_and_back(kind: str):
    ours = small_transformer(KINDS[kind]).state_dict()
    back = DIFFUSERS.to_ours(DIFFUSERS.to_theirs(ours))
    assert set(back) == set(ours)
    assert all(torch.equal(back[key], ours[key]) for key in ours)
    assert {key: spec.shape for key, spec in back.specs.items()} == {
        key: tuple(value.shape) for key, value in ours.items()
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_transformer_folder_of_theirs_answers_alike(tmp_path: Path, suffix: str):
    theirs = their_transformer(KINDS["sigma"])
    theirs.save_pretrained(tmp_path, safe_serialization=suffix == ".safetensors")
    assert any(path.suffix == suffix for path in tmp_path.iterdir())
    ours = read_transformer(tmp_path)
    torch.testing.assert_close(answers(ours), answers(theirs), rtol=1e-4, atol=1e-5)


def test_a_sharded_transformer_of_theirs_is_read(tmp_path: Path):
    theirs = their_transformer(KINDS["sigma"])
    theirs.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = DIFFUSERS.to_theirs(read_transformer(tmp_path).state_dict())
    assert all(torch.equal(ours[key], value) for key, value in theirs.state_dict().items())


def test_a_half_precision_copy_is_read_when_asked_for(tmp_path: Path):
    from pixsigma.errors import MissingWeightsError
    from pixsigma.weights.locate import FileChoice

    their_transformer(KINDS["sigma"]).half().save_pretrained(
        tmp_path, variant="fp16", max_shard_size="300KB"
    )
    ours = read_transformer(tmp_path, choice=FileChoice(variant="fp16"))
    assert ours.dtype is torch.float16
    with pytest.raises(MissingWeightsError, match=r"it has .*fp16.*choose by variant="):
        read_transformer(tmp_path)


def test_an_old_autoencoder_is_read(tmp_path: Path):
    """Before 2023 the attention had other names and was kept as 1 × 1 convolutions."""
    from safetensors.torch import save_file

    theirs = their_autoencoder()
    theirs.save_config(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in theirs.state_dict().items():
        for new, name in old.items():
            if f".{new}." in key and value.dim() == 2:
                value = value[:, :, None, None].contiguous()
            key = key.replace(f".{new}.", f".{name}.")
        state[key] = value
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    assert same(read_autoencoder(tmp_path), theirs)


def their_pipeline(folder: Path, text_encoder, vae, transformer):
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    pipeline = PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipeline.save_pretrained(folder)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(SPIECE.read_bytes())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_folder_that_diffusers_wrote_is_loaded_whole(tmp_path: Path):
    text_encoder, vae = their_text_encoder(), their_autoencoder()
    transformer = their_transformer(KINDS["sigma"])
    their_pipeline(tmp_path, text_encoder, vae, transformer)
    found = load_components(tmp_path)
    assert (found.variant, found.max_tokens) == ("sigma", 300)
    assert found.resolution == transformer.config.sample_size * 2
    torch.testing.assert_close(
        answers(found.transformer), answers(transformer), rtol=1e-4, atol=1e-5
    )
    assert same(found.autoencoder, vae)
    ids, mask = found.text_encoder.tokenizer(["a cat", "a red house on the hill"])
    with torch.no_grad():
        expected = text_encoder(ids, attention_mask=mask.long())[0]
        given = found.text_encoder.encoder(ids, mask)
    torch.testing.assert_close(given[mask], expected[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_diffusers_loads_a_folder_that_we_wrote(tmp_path: Path):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from transformers import T5EncoderModel, T5Tokenizer

    transformer, vae = small_transformer(), small_autoencoder()
    text = small_text_encoder()
    save_folder(tmp_path, transformer=transformer, text_encoder=text, autoencoder=vae)
    theirs = PixArtTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer")
    torch.testing.assert_close(answers(theirs), answers(transformer), rtol=1e-4, atol=1e-5)
    assert same(vae, AutoencoderKL.from_pretrained(tmp_path, subfolder="vae"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = T5EncoderModel.from_pretrained(tmp_path, subfolder="text_encoder").eval()
        tokenizer = T5Tokenizer.from_pretrained(tmp_path, subfolder="tokenizer")
        DPMSolverMultistepScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    ids, mask = text.tokenizer(["a small cactus"])
    assert tokenizer(["a small cactus"])["input_ids"] == ids.tolist()
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids)[0], text.encoder(ids, mask), rtol=1e-4, atol=1e-4)
