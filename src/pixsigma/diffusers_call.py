"""The call of diffusers' PixArtSigmaPipeline, told in our terms: same arguments, same numbers.

Where diffusers has a trap, the sane meaning is taken: `negative_prompt=None` is the empty prompt,
not the word "none", and negative embeddings may stand beside a default negative prompt.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pixsigma import images as pictures
from pixsigma.buckets import bin_table, check_size, nearest
from pixsigma.controls import follower
from pixsigma.diffusion.samplers.base import Sampler
from pixsigma.editing.plan import as_request
from pixsigma.errors import InputError
from pixsigma.interfaces import TextFeatures
from pixsigma.models.cleaning import clean_caption as cleaned_once
from pixsigma.shapes import Latents

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline


@dataclass(frozen=True)
class PipelineOutput:
    """What calling the pipeline returns."""

    images: Any
    """PIL images, or an array or tensor as `output_type` says."""


StepEnd = Callable[["PixArtSigmaPipeline", int, float, dict[str, Tensor]], dict[str, Tensor] | None]


@torch.no_grad()
def call_as_diffusers(
    self: "PixArtSigmaPipeline",
    prompt: str | list[str] | None = None,
    negative_prompt: str | list[str] | None = "",
    num_inference_steps: int = 20,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    guidance_scale: float | None = None,
    num_images_per_prompt: int = 1,
    height: int | None = None,
    width: int | None = None,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    latents: Latents | None = None,
    prompt_embeds: Tensor | None = None,
    prompt_attention_mask: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    output_type: str = "pil",
    return_dict: bool = True,
    callback_on_step_end: StepEnd | None = None,
    clean_caption: bool = True,
    use_resolution_binning: bool = True,
    max_sequence_length: int | None = None,
    control: Sequence[Any] = (),
) -> PipelineOutput | tuple[Any]:
    """Draw, with the arguments, defaults and numbers of diffusers' PixArtSigmaPipeline.

    `guidance_scale` None is what suits the model, 4.5 for the published ones. `control` is ours:
    hints as a request has them. Raises InputError, SizeError, NotFiniteError or OutOfMemoryError.
    """
    asked = height or self.default_size[0], width or self.default_size[1]
    size = binned(self, asked) if use_resolution_binning else asked
    check_size(size[1], size[0], self.multiple)
    prepare = cleaned_twice if clean_caption else lowered
    limit = max_sequence_length or self.max_tokens
    text = features(self, prompt, prompt_embeds, prompt_attention_mask, prepare, limit)
    num = len(text.mask)
    negative = None
    scale = self.default_guidance if guidance_scale is None else guidance_scale
    if scale > 1:  # below 1 diffusers does not guide either
        embeds, mask = negative_prompt_embeds, negative_prompt_attention_mask
        negative = led_away(self, negative_prompt, embeds, mask, prepare, limit, num)
    sampler = with_eta(self.sampler, eta)
    levels = sampler.levels(self.schedule, num_inference_steps)
    if timesteps is not None or sigmas is not None:
        levels = sampler.levels_at(self.schedule, timesteps=timesteps, ratios=sigmas)
    drawing = self.drawing(
        text.repeat_interleave(num_images_per_prompt),
        negative and negative.repeat_interleave(num_images_per_prompt),
        max(scale, 1.0),
        levels,
        size,
        generators(generator, num * num_images_per_prompt),
        latents,
        step_end(self, callback_on_step_end),
    )
    *_, last = self.denoised(sampler, hinted(self, drawing, control, size, asked))
    images = finished(self, last.latents, asked, size, output_type)
    return PipelineOutput(images) if return_dict else (images,)


def led_away(
    pipe: "PixArtSigmaPipeline",
    prompt: str | list[str] | None,
    embeds: Tensor | None,
    mask: Tensor | None,
    prepare: Callable[[str], str],
    max_tokens: int,
    num: int,
) -> TextFeatures:
    """Features of the negative prompts, one for each of `num`."""
    prompt = None if embeds is not None else spread(prompt or "", num)
    return features(pipe, prompt, embeds, mask, prepare, max_tokens)


def hinted(
    pipe: "PixArtSigmaPipeline",
    drawing: Any,
    control: Sequence[Any],
    size: tuple[int, int],
    asked: tuple[int, int],
) -> Any:
    """The drawing with the hints that it follows."""
    followed = follower(pipe, as_request("", {"control": control}).control, asked)
    return dataclasses.replace(drawing, controls=followed(drawing.levels, size))


def binned(pipe: "PixArtSigmaPipeline", size: tuple[int, int]) -> tuple[int, int]:
    """The size to draw at; models without a published table draw what was asked."""
    if pipe.transformer_config.sample_size not in (32, 64, 128, 256):
        return size
    return nearest(bin_table(pipe.transformer_config.sample_size), *size)


def features(
    pipe: "PixArtSigmaPipeline",
    prompt: str | list[str] | None,
    embeds: Tensor | None,
    mask: Tensor | None,
    prepare: Callable[[str], str],
    max_tokens: int,
) -> TextFeatures:
    """Features of prompts, or those that were given."""
    if (prompt is None) == (embeds is None):
        raise InputError("give either prompts or their embeddings: got both or neither")
    if embeds is not None:
        if mask is None or mask.shape != embeds.shape[:2]:
            raise InputError(
                f"embeddings (B, L, E) need an attention mask (B, L): got {tuple(embeds.shape)} "
                f"and {None if mask is None else tuple(mask.shape)}"
            )
        return TextFeatures(embeds, mask.bool())
    rows = [prompt] if isinstance(prompt, str) else prompt
    if not rows or not all(isinstance(row, str) for row in rows):
        raise InputError(f"a prompt is a string or a list of strings, got {prompt!r}")
    return pipe.encode([prepare(row) for row in rows], max_tokens)


def spread(prompt: str | list[str], num: int) -> list[str]:
    """One negative prompt a prompt: a single one serves for all."""
    rows = [prompt] if isinstance(prompt, str) else prompt
    if len(rows) not in (1, num):
        raise InputError(f"give one negative prompt, or one for each of {num}: got {len(rows)}")
    return rows if len(rows) == num else rows * num


def generators(
    given: torch.Generator | list[torch.Generator] | None, num: int
) -> list[torch.Generator]:
    """One for all pictures (torch's own where none is given), or one a picture."""
    if isinstance(given, list) and len(given) != num:
        raise InputError(f"give one generator, or one for each of {num} pictures: got {len(given)}")
    if given is None:
        return [torch.default_generator]
    return given if isinstance(given, list) else [given]


def step_end(
    pipe: "PixArtSigmaPipeline", callback: StepEnd | None
) -> Callable[[int, float, Tensor], Tensor | None] | None:
    """diffusers' `callback_on_step_end(pipe, index, timestep, {"latents": …})` as ours."""
    if callback is None:
        return None

    def on_step(index: int, timestep: float, latents: Tensor) -> Tensor | None:
        return (callback(pipe, index, timestep, {"latents": latents}) or {}).get("latents")

    return on_step


def finished(
    pipe: "PixArtSigmaPipeline",
    latents: Latents | None,
    asked: tuple[int, int],
    size: tuple[int, int],
    output_type: str,
) -> Any:
    """Latents to what was asked for, brought from the bin's size to the asked one."""
    assert latents is not None  # a denoising step always has them
    convert = {"pil": pictures.to_pil, "np": pictures.to_numpy, "pt": pictures.to_unit}
    if output_type == "latent":
        return latents
    if output_type not in convert:
        raise InputError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
    images = pipe.decode(latents)
    if asked != size:
        images = pictures.resize_and_crop(images, *asked)
    return convert[output_type](images)


def with_eta(sampler: Sampler, eta: float) -> Sampler:
    """DDIM with this much noise; other samplers have no eta, as in diffusers."""
    if eta and dataclasses.is_dataclass(sampler) and hasattr(sampler, "eta"):
        return dataclasses.replace(sampler, eta=eta)
    return sampler


def cleaned_twice(text: str) -> str:
    """The published cleaning, which runs twice; it ends in lower case."""
    return cleaned_once(cleaned_once(text))


def lowered(text: str) -> str:
    """What diffusers does to a prompt that it does not clean."""
    return text.lower().strip()
