"""The model inside, drawn by us and by diffusers from one folder and the same noise."""

from pathlib import Path

import numpy as np
import pytest
import torch

import pixsigma
from pixsigma import PixArtSigmaPipeline

MINI = Path(pixsigma.__file__).parent / "mini"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("prompt", ["a red apple", "A small cactus in the desert."])
def test_diffusers_draws_the_same_picture(prompt: str) -> None:
    from diffusers import PixArtSigmaPipeline as Theirs

    theirs = Theirs.from_pretrained(MINI).to(torch.float32)
    theirs.set_progress_bar_config(disable=True)
    ours = PixArtSigmaPipeline.from_pretrained("mini")
    side = ours.default_size[0]
    call = {
        "latents": torch.randn(1, 4, *2 * [side // ours.factor], generator=torch.manual_seed(0)),
        "height": side,
        "width": side,
        "use_resolution_binning": False,
        "output_type": "np",
        "num_inference_steps": 14,
        "guidance_scale": ours.default_guidance,
    }
    a = theirs(prompt, **call).images
    b = ours(prompt, **call).images
    assert np.abs(a - b).max() <= 1e-3
    assert np.ptp(a) > 0.5
