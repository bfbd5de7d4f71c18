"""Draw many prompts, a batch at a time, each with a seed that says where it stands."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from pixsigma.diffusers_call import PipelineOutput
from pixsigma.requests import request_from

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline

LARGEST_BATCH = 16 * 128 * 128
"""Pixels that are drawn together, so that memory stays the same at every size."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every picture of an evaluation is drawn, with the sampler that the model names.

    Raises InputError for what no request may have.
    """

    steps: int = 20
    guidance: float | None = None
    """None is what suits the model."""
    size: int | None = None
    """Side in pixels; None is the model's own."""
    seed: int = 0
    """Of the first picture of a measure; each has the next."""

    def __post_init__(self) -> None:
        request_from(
            prompt="",
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            width=self.size,
            height=self.size,
            seed=self.seed,
        )


def draw(
    pipe: "PixArtSigmaPipeline", prompts: Sequence[str], settings: Settings
) -> Iterator[Image.Image]:
    """Yield one picture a prompt, in order; the seed of each is its place among the prompts.

    Raises InputError, NotFiniteError or OutOfMemoryError as the pipeline does.
    """
    side = settings.size or max(pipe.default_size)
    batch = max(1, LARGEST_BATCH // side**2)
    for first in range(0, len(prompts), batch):
        seeds = range(settings.seed + first, settings.seed + first + batch)
        yield from _draw_batch(pipe, prompts[first : first + batch], list(seeds), side, settings)


def _draw_batch(
    pipe: "PixArtSigmaPipeline",
    prompts: Sequence[str],
    seeds: Sequence[int],
    side: int,
    settings: Settings,
) -> list[Image.Image]:
    text, null = pipe.encode(prompts), pipe.encode([""] * len(prompts))
    output = pipe(
        prompt_embeds=text.embeddings,
        prompt_attention_mask=text.mask,
        negative_prompt_embeds=null.embeddings,
        negative_prompt_attention_mask=null.mask,
        height=side,
        width=side,
        guidance_scale=settings.guidance,
        num_inference_steps=settings.steps,
        generator=[torch.Generator().manual_seed(s) for s in seeds[: len(prompts)]],
        use_resolution_binning=False,
    )
    assert isinstance(output, PipelineOutput), "a plain call returns pictures by name"
    return output.images
