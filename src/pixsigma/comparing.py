"""One guided step of ours and of diffusers, on the same weights in the same memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pixsigma.config import TransformerConfig
from pixsigma.denoising import Reading
from pixsigma.diffusion.guidance import guided
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError, MissingExtraError
from pixsigma.interfaces import TextFeatures
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.weights.config_files import transformer_json
from pixsigma.weights.keymaps import DIFFUSERS

MAX_TOKENS = 300
"""What diffusers pads the texts of PixArt-Σ to."""


def in_diffusers(model: PixArtTransformer) -> nn.Module:
    """The same network in diffusers, which looks at the same memory.

    Raises MissingExtraError where diffusers is not installed, InputError for what it has not or
    what cannot be compared on equal terms.
    """
    config = model.config
    if config.qk_norm or config.kv_compression or config.use_additional_conditions:
        raise InputError(
            "diffusers is compared on plain models: without query-key norm and KV compression, "
            "which it has not, and without size conditions"
        )
    try:
        from diffusers import PixArtTransformer2DModel
    except ImportError as error:
        raise MissingExtraError("to compare with it, pip install diffusers") from error

    values = {k: v for k, v in transformer_json(config).items() if not k.startswith("_")}
    with torch.device("meta"):
        make: Any = PixArtTransformer2DModel
        theirs = make(**values)
    state = DIFFUSERS.to_theirs(model.state_dict())
    theirs.load_state_dict({key: state[key].float() for key in state}, assign=True)
    # a table of positions that is computed, not stored
    fresh = type(theirs.pos_embed)(
        height=config.sample_size,
        width=config.sample_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        embed_dim=config.width,
        interpolation_scale=config.interpolation_scale,
    )
    fresh.proj = theirs.pos_embed.proj
    theirs.pos_embed = fresh
    found: nn.Module = theirs.eval().requires_grad_(False)
    return found


@dataclass(frozen=True)
class Task:
    """One step with guidance: noise at a level, a prompt and the empty prompt."""

    x: Tensor
    """(1, C, H, W)"""
    text: TextFeatures
    null: TextFeatures
    timestep: int = 500
    scale: float = 4.5

    @classmethod
    def of(
        cls, config: TransformerConfig, side: int, num_tokens: int, seed: int = 1, factor: int = 8
    ) -> "Task":
        """For pictures of `side` pixels, `factor` to a latent; the empty prompt is one token."""
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(1, config.in_channels, *2 * [side // factor], generator=g)
        text, null = (
            torch.randn(1, MAX_TOKENS, config.caption_channels, generator=g) for _ in range(2)
        )
        places = torch.arange(MAX_TOKENS)[None]
        return cls(x, TextFeatures(text, places < num_tokens), TextFeatures(null, places < 1))


def step_of_ours(model: nn.Module, task: Task, again: bool = False) -> Callable[[], Tensor]:
    """A step as the pipeline takes it; `again` reads the text each time, as a first step does."""
    schedule = NoiseSchedule()
    level = schedule.level(task.timestep)

    def prepared() -> Any:
        reading = Reading(model, None, variance=False)
        return guided(reading, task.text, task.null, task.scale)

    kept = prepared()

    @torch.no_grad()
    def step() -> Tensor:
        predict: Any = prepared() if again else kept
        eps: Tensor = predict(task.x, level).eps
        return eps

    return step


def step_of_diffusers(theirs: nn.Module, task: Task) -> Callable[[], Tensor]:
    """A step as diffusers' pipeline takes it: padded texts, both in one batch, then guidance."""
    text = torch.cat([task.null.embeddings, task.text.embeddings])
    mask = torch.cat([task.null.mask, task.text.mask]).to(torch.int64)
    t = torch.full((2,), task.timestep)
    nothing = {"resolution": None, "aspect_ratio": None}

    @torch.no_grad()
    def step() -> Tensor:
        x = torch.cat([task.x] * 2)
        output = theirs(
            x,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=t,
            added_cond_kwargs=nothing,
            return_dict=False,
        )[0]
        uncond, cond = output.chunk(2)
        guided_output = uncond + task.scale * (cond - uncond)
        return guided_output.chunk(2, dim=1)[0]

    return step
