"""The model inside: complete, small, and it listens to the prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch

import pixsigma
from pixsigma import PixArtSigmaPipeline
from pixsigma.weights.folder import read_text_encoder, save_text_encoder

MINI = Path(pixsigma.__file__).parent / "mini"


@pytest.fixture(scope="module")
def pipe() -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline.from_pretrained("mini")


def picture(pipe: PixArtSigmaPipeline, prompt: str, seed: int = 0, num: int = 1) -> torch.Tensor:
    """(num, 3, height, width) in [0, 1]."""
    *_, last = pipe.stream(prompt, seed=seed, num_images=num, num_inference_steps=14)
    rows = [torch.from_numpy(np.array(image)) for image in last.images]
    return torch.stack(rows).permute(0, 3, 1, 2) / 255


def test_the_folder_is_complete_and_small() -> None:
    parts = {"transformer", "text_encoder", "vae", "scheduler", "tokenizer"}
    assert parts <= {path.name for path in MINI.iterdir()}
    assert (MINI / "README.md").read_text("utf-8").startswith("# mini")
    assert sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file()) <= 48 * 2**20


def test_backgrounds_have_the_colour_that_was_asked(pipe: PixArtSigmaPipeline) -> None:
    """Corners are background: their mean colour must be nearest to the named one."""
    colours = {"red": (0.83, 0.19, 0.21), "blue": (0.2, 0.4, 0.85), "white": (1.0, 1.0, 1.0)}
    for name, wanted in colours.items():
        drawn = picture(pipe, f"an elephant on a {name} background", num=2)
        corners = torch.cat([drawn[..., :8, :8], drawn[..., :8, -8:]], dim=-1).mean(dim=(0, 2, 3))
        distance = {
            other: float((corners - torch.tensor(colour)).norm())
            for other, colour in colours.items()
        }
        assert min(distance, key=lambda k: distance[k]) == name, (name, corners, wanted)


def test_words_that_it_never_read_are_told(
    pipe: PixArtSigmaPipeline, recwarn: pytest.WarningsRecorder, tmp_path: Path
) -> None:
    next(pipe.stream("two small cats, 3D, and a cactus in the desert"))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="never shown the words submarine, made: it draws"):
        next(pipe.stream("a (submarine:1.2) made of glass"))
    assert pipe.text_encoder.words
    save_text_encoder(pipe.text_encoder, tmp_path)
    assert read_text_encoder(tmp_path).words == pipe.text_encoder.words


def test_a_picture_is_the_same_alone_or_in_a_batch_of_seven(pipe: PixArtSigmaPipeline) -> None:
    together = [s.latents for s in pipe.stream("a cat", seed=20, num_images=7)][-1]
    for k in (5, 2):
        alone = [s.latents for s in pipe.stream("a cat", seed=20 + k)][-1]
        assert together is not None and alone is not None
        assert (together[k : k + 1] - alone).norm() <= 1e-5 * alone.norm()
