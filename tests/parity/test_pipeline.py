"""The whole pipeline against diffusers': a folder that diffusers wrote, pictures in [0, 1]."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pixsigma
from pixsigma import InputError, PixArtSigmaPipeline
from pixsigma.images import to_numpy

# diffusers warns of numpy's and its own coming versions
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TOKENIZER = Path(pixsigma.__file__).parent / "mini" / "tokenizer"
PROMPTS = ["A small Cactus with a happy face in the Sahara desert.", "two red cubes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny parts with random weights, written by diffusers."""
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        PixArtTransformer2DModel,
    )
    from diffusers import PixArtSigmaPipeline as Theirs
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=32,
        in_channels=4,
        out_channels=8,
        interpolation_scale=0.5,
        use_additional_conditions=False,
    )
    for p in transformer.parameters():
        torch.nn.init.normal_(p, std=0.05)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.13025,
        sample_size=256,
    )
    t5 = T5EncoderModel(
        T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", vocab_size=32128,
        )
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", solver_order=2
    )
    path = tmp_path_factory.mktemp("theirs")
    pipe = Theirs(
        tokenizer=T5Tokenizer.from_pretrained(TOKENIZER),
        text_encoder=t5,
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )
    pipe.save_pretrained(path)  # transformers 5 writes tokenizer.json, and no spiece.model
    return path


@pytest.fixture(scope="module")
def pipes(folder: Path) -> tuple[Any, PixArtSigmaPipeline]:
    from diffusers import PixArtSigmaPipeline as Theirs

    theirs = Theirs.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    return theirs, PixArtSigmaPipeline.from_pretrained(folder)


def both(pipes: tuple[Any, PixArtSigmaPipeline], **call: Any) -> float:
    """Largest difference of the two pictures' values in [0, 1]."""
    pictures = []
    for pipe in pipes:
        torch.manual_seed(7)
        pictures.append(pipe(**{"output_type": "np", "num_inference_steps": 4} | call).images)
    assert pictures[0].shape == pictures[1].shape
    assert np.ptp(pictures[0]) > 0.05, "a flat picture shows nothing"
    return float(np.abs(pictures[0] - pictures[1]).max())


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"guidance_scale": 1.0},
        {"negative_prompt": "blurry, low quality"},
        {"clean_caption": False},
        {"height": 208, "width": 304},
        {"height": 200, "width": 300},  # drawn at a bin, brought to the asked size
        {"height": 64, "width": 96, "use_resolution_binning": False},
        {"num_inference_steps": 20},
    ],
)
def test_same_picture(pipes: tuple[Any, PixArtSigmaPipeline], call: dict[str, Any]) -> None:
    assert both(pipes, prompt=PROMPTS[0], **call) <= 1e-3


def test_batches_and_several_pictures_a_prompt(pipes: tuple[Any, PixArtSigmaPipeline]) -> None:
    assert both(pipes, prompt=PROMPTS) <= 1e-3
    assert both(pipes, prompt=PROMPTS, num_images_per_prompt=2) <= 1e-3
    negatives = ["blurry", "dark and ugly"]
    assert both(pipes, prompt=PROMPTS, negative_prompt=negatives) <= 1e-3


def test_generators_latents_embeddings_and_outputs(
    pipes: tuple[Any, PixArtSigmaPipeline],
) -> None:
    theirs, ours = pipes
    pair = [torch.Generator().manual_seed(s) for s in (3, 4)]
    again = [torch.Generator().manual_seed(s) for s in (3, 4)]
    size = {"height": 64, "width": 64, "use_resolution_binning": False, "num_inference_steps": 3}
    a = theirs(PROMPTS, generator=pair, output_type="latent", **size).images
    b = ours(PROMPTS, generator=again, output_type="latent", **size).images
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    latents = torch.randn(1, 4, 8, 8)
    a = theirs(PROMPTS[0], latents=latents, output_type="pt", **size).images
    b = ours(PROMPTS[0], latents=latents, output_type="pt", **size).images
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)

    with torch.no_grad():
        embeds, mask, null, null_mask = theirs.encode_prompt(PROMPTS[0])
    given = {
        "prompt_embeds": embeds,
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": null,
        "negative_prompt_attention_mask": null_mask,
        "latents": latents,
    }
    a = theirs(negative_prompt=None, return_dict=False, output_type="np", **given, **size)[0]
    b = ours(negative_prompt=None, return_dict=False, output_type="np", **given, **size)[0]
    assert np.abs(a - b).max() <= 1e-3
    pil = ours(PROMPTS[0], latents=latents, **size).images[0]
    assert pil.size == (64, 64)


def test_a_shorter_limit_cuts_at_the_same_word_and_says_so(
    pipes: tuple[Any, PixArtSigmaPipeline],
) -> None:
    with pytest.warns(UserWarning, match="desert"):
        assert both(pipes, prompt=PROMPTS[0], max_sequence_length=12) <= 1e-3


def test_own_timesteps(pipes: tuple[Any, PixArtSigmaPipeline]) -> None:
    call = {"prompt": PROMPTS[0], "timesteps": [999, 800, 500, 200]}
    assert both(pipes, height=64, width=64, use_resolution_binning=False, **call) <= 1e-3


def test_the_callback_sees_and_replaces_latents(
    pipes: tuple[Any, PixArtSigmaPipeline],
) -> None:
    seen = []

    def on_step_end(pipe: Any, i: int, t: float, values: dict[str, Any]) -> dict[str, Any]:
        seen.append((i, t))
        return {"latents": values["latents"] * 0}

    latents = pipes[1](
        PROMPTS[0],
        num_inference_steps=3,
        callback_on_step_end=on_step_end,
        output_type="latent",
    ).images
    assert [i for i, _ in seen] == [0, 1, 2]
    assert seen[0][1] == 999
    assert (latents == 0).all()


def test_the_older_callback_is_called_as_theirs(pipes: tuple[Any, PixArtSigmaPipeline]) -> None:
    found: list[list[tuple[int, int, Any]]] = [[], []]
    for pipe, seen in zip(pipes, found, strict=True):
        pipe(
            PROMPTS[0],
            num_inference_steps=5,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            callback=lambda i, t, latents, seen=seen: seen.append((i, int(t), latents.clone())),
            callback_steps=2,
        )
    assert [s[:2] for s in found[0]] == [s[:2] for s in found[1]]
    assert [i for i, _, _ in found[1]] == [0, 2, 4]
    for (_, _, theirs), (_, _, ours) in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    for wrong in (0, 1.5, True):
        with pytest.raises(InputError, match="callback_steps is a whole number above 0"):
            pipes[1](PROMPTS[0], callback_steps=wrong)  # type: ignore[arg-type]


def test_a_wrong_output_type_is_told_before_anything_is_drawn(
    pipes: tuple[Any, PixArtSigmaPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes[1], "encode", None)
    with pytest.raises(InputError, match="output_type must be pil, np, pt, latent, got 'jpg'"):
        pipes[1](PROMPTS[0], output_type="jpg")


def test_a_folder_of_ours_is_read_by_diffusers(
    pipes: tuple[Any, PixArtSigmaPipeline], tmp_path: Path
) -> None:
    from diffusers import PixArtSigmaPipeline as Theirs

    pipes[1].save_pretrained(tmp_path / "ours")
    back = Theirs.from_pretrained(tmp_path / "ours")
    back.set_progress_bar_config(disable=True)
    assert both((back, pipes[1]), prompt=PROMPTS[0], height=128, width=128) <= 1e-3


@pytest.mark.parametrize("scale", [1.0, 4.5])
@pytest.mark.parametrize("layers", [(0,), (0, 1)])
def test_perturbed_attention_guidance(
    pipes: tuple[Any, PixArtSigmaPipeline], scale: float, layers: tuple[int, ...]
) -> None:
    from diffusers import PixArtSigmaPAGPipeline

    names = [f"blocks.{i}" for i in layers]
    theirs = PixArtSigmaPAGPipeline(**pipes[0].components, pag_applied_layers=names)
    theirs.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "guidance_scale": scale, "clean_caption": False}
    generator = torch.Generator().manual_seed(5)
    prompt = "two red cubes"  # in lower case, as diffusers lowers what it does not clean
    expected = theirs(prompt, pag_scale=20.0, generator=generator, output_type="np", **call).images
    ours = pipes[1]
    *_, last = ours.stream(prompt, seed=5, guidance={"pag": 20.0, "layers": layers}, **call)
    *_, plain = ours.stream(prompt, seed=5, **call)
    found, without = (to_numpy(ours.decode(step.latents)) for step in (last, plain))
    assert np.abs(found - expected).max() <= 1e-3
    assert np.abs(found - without).max() > 1e-2, "guidance that changes nothing shows nothing"
