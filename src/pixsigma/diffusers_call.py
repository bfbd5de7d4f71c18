"""The call of diffusers' PixArtSigmaPipeline, told in our terms: same arguments, same numbers.

Where diffusers has a trap, the sane meaning is taken: `negative_prompt=None` is the empty prompt,
not the word "none", and negative embeddings may stand beside a default negative prompt.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from pixsigma import images as pictures
from pixsigma.buckets import bin_table, check_size, nearest
from pixsigma.controls import follower
from pixsigma.denoising import OnStep
from pixsigma.diffusion.samplers import Sampler, with_eta
from pixsigma.diffusion.schedule import Level
from pixsigma.editing.plan import as_request
from pixsigma.errors import InputError
from pixsigma.given import is_number, is_whole
from pixsigma.interfaces import TextFeatures
from pixsigma.models.cleaning import clean_caption as cleaned_once
from pixsigma.shapes import Images, Latents

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline


@dataclass(frozen=True)
class PipelineOutput:
    """What calling the pipeline returns."""

    images: Any
    """PIL images, or an array or tensor as `output_type` says."""


Form: TypeAlias = Callable[[Images], Any]

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
    callback: Callable[[int, int, Tensor], None] | None = None,
    callback_steps: int = 1,
    clean_caption: bool = True,
    use_resolution_binning: bool = True,
    max_sequence_length: int | None = None,
    callback_on_step_end: StepEnd | None = None,
    control: Sequence[Any] = (),
) -> PipelineOutput | tuple[Any]:
    """Draw, with the arguments, defaults and numbers of diffusers' PixArtSigmaPipeline.

    `guidance_scale` None is what suits the model, 4.5 for the published ones. Ours are `control`,
    hints as a request has them, and `callback_on_step_end` of other pipelines. Raises InputError,
    SizeError, NotFiniteError or OutOfMemoryError.
    """
    form = checked(dict(locals()))
    asked = height or self.default_size[0], width or self.default_size[1]
    size = drawn_at(self, asked, use_resolution_binning)
    prepare = cleaned_twice if clean_caption else lowered
    limit = max_sequence_length or self.max_tokens
    text = features(self, prompt, prompt_embeds, prompt_attention_mask, prepare, limit)
    scale = self.default_guidance if guidance_scale is None else guidance_scale
    embeds, mask = negative_prompt_embeds, negative_prompt_attention_mask
    negative = None  # below 1 diffusers does not guide either
    if scale > 1:
        negative = led_away(self, negative_prompt, embeds, mask, prepare, limit, len(text.mask))
    sampler = with_eta(self.sampler, eta)
    levels = levels_of(self, sampler, num_inference_steps, timesteps, sigmas)
    drawing = self.drawing(
        text.repeat_interleave(num_images_per_prompt),
        negative and negative.repeat_interleave(num_images_per_prompt),
        max(scale, 1.0),
        levels,
        size,
        generators(generator, len(text.mask) * num_images_per_prompt),
        latents,
        step_end(self, callback_on_step_end, callback, callback_steps),
    )
    *_, last = self.denoised(sampler, hinted(self, drawing, control, size, asked))
    images = finished(self, last.latents, asked, size, form)
    return PipelineOutput(images) if return_dict else (images,)


WHOLE = (
    "num_inference_steps",
    "num_images_per_prompt",
    "height",
    "width",
    "max_sequence_length",
    "callback_steps",
)
"""Arguments that are whole numbers above 0."""


def checked(given: Mapping[str, Any]) -> Form | None:
    """What makes `output_type` of pictures, None for latents.

    Raises InputError for numbers of a call that are none, or out of range.
    """
    for name in WHOLE:
        value = given[name]
        if value is not None and not is_whole(value):
            raise InputError(f"{name} is a whole number above 0, got {value!r}")
    for name in ("guidance_scale", "eta"):
        value = given[name]
        if value is not None and not is_number(value):
            raise InputError(f"{name} is a finite number, got {value!r}")
    return form_of(given["output_type"])


def levels_of(
    pipe: "PixArtSigmaPipeline",
    sampler: Sampler,
    num_inference_steps: int,
    timesteps: Sequence[int] | None,
    sigmas: Sequence[float] | None,
) -> tuple[Level, ...]:
    """The sampler's own levels, or those that were given."""
    if timesteps is None and sigmas is None:
        return sampler.levels(pipe.schedule, num_inference_steps)
    given = None if timesteps is None else [float(t) for t in timesteps]
    return sampler.levels_at(pipe.schedule, timesteps=given, ratios=sigmas)


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


def drawn_at(pipe: "PixArtSigmaPipeline", size: tuple[int, int], binning: bool) -> tuple[int, int]:
    """The (height, width) to draw; models without a published table draw what was asked.

    Raises SizeError.
    """
    if binning and pipe.transformer_config.sample_size in (32, 64, 128, 256):
        size = nearest(bin_table(pipe.transformer_config.sample_size), *size)
    check_size(size[1], size[0], pipe.multiple)
    return size


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
        if embeds.ndim != 3 or mask is None or mask.shape != embeds.shape[:2]:
            raise InputError(
                f"embeddings (B, L, E) need an attention mask (B, L): got {tuple(embeds.shape)} "
                f"and {None if mask is None else tuple(mask.shape)}"
            )
        width = pipe.transformer_config.caption_channels
        if embeds.shape[-1] != width:
            raise InputError(f"embeddings for this model are {width} wide, got {embeds.shape[-1]}")
        return TextFeatures(embeds, mask.bool())
    rows = [prompt] if isinstance(prompt, str) else prompt
    if not rows or not all(isinstance(row, str) for row in rows):
        raise InputError(f"a prompt is a string or a list of strings, got {prompt!r}")
    if any(row.encode("utf-8", "replace").decode() != row for row in rows):
        raise InputError(f"a prompt is text, this one has halves of characters: {prompt!r}")
    return pipe.encode([prepare(row) for row in rows], max_tokens)


def spread(prompt: str | list[str], num: int) -> list[str]:
    """One negative prompt a prompt: a single one serves for all."""
    if not isinstance(prompt, str | list):
        raise InputError(f"a negative prompt is a string or a list of strings, got {prompt!r}")
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
    found = given if isinstance(given, list) else [given]
    if not all(isinstance(each, torch.Generator) for each in found):
        raise InputError(f"a generator is a torch.Generator or a list of them, got {given!r}")
    return found


def step_end(
    pipe: "PixArtSigmaPipeline",
    at_end: StepEnd | None,
    callback: Callable[[int, int, Tensor], None] | None,
    every: int,
) -> OnStep | None:
    """diffusers' `callback_on_step_end(pipe, index, timestep, {"latents": …})`, and the older
    `callback(index, timestep, latents)` of each `every` steps, as ours.
    """
    if at_end is None and callback is None:
        return None

    def on_step(index: int, timestep: float, latents: Tensor) -> Tensor | None:
        replaced = None
        if at_end is not None:
            replaced = (at_end(pipe, index, timestep, {"latents": latents}) or {}).get("latents")
        if callback is not None and index % every == 0:
            callback(index, int(timestep), latents if replaced is None else replaced)
        return replaced

    return on_step


def finished(
    pipe: "PixArtSigmaPipeline",
    latents: Latents | None,
    asked: tuple[int, int],
    size: tuple[int, int],
    form: Form | None,
) -> Any:
    """Latents to what was asked for, brought from the bin's size to the asked one."""
    assert latents is not None  # a denoising step always has them
    if form is None:
        return latents
    images = pipe.decode(latents)
    if asked != size:
        images = pictures.resize_and_crop(images, *asked)
    return form(images)


def form_of(output_type: str) -> Form | None:
    """What makes `output_type` of pictures; None leaves latents. Raises InputError."""
    forms: dict[str, Form | None] = {
        "pil": pictures.to_pil,
        "np": pictures.to_numpy,
        "pt": pictures.to_unit,
        "latent": None,
    }
    if output_type not in forms:
        raise InputError(f"output_type must be {', '.join(forms)}, got {output_type!r}")
    return forms[output_type]


def cleaned_twice(text: str) -> str:
    """The published cleaning, which runs twice; it ends in lower case."""
    return cleaned_once(cleaned_once(text))


def lowered(text: str) -> str:
    """What diffusers does to a prompt that it does not clean."""
    return text.lower().strip()
