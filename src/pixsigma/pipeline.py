"""A prompt to a picture: text, denoising, decoding. A generator: the caller is in charge."""

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pixsigma import adapters, controls
from pixsigma import images as pictures
from pixsigma.config import TransformerConfig
from pixsigma.denoising import Drawing, OnStep, Step, denoise, draw_noise, first_noise, refuse_nan
from pixsigma.diffusers_call import call_as_diffusers
from pixsigma.diffusion.samplers.base import Sampler
from pixsigma.diffusion.schedule import Level
from pixsigma.diffusion.steering import sampler_for
from pixsigma.editing.known import Known, shortened
from pixsigma.editing.plan import Plan, Round, as_request, covering, planned
from pixsigma.errors import InputError, MissingWeightsError
from pixsigma.interfaces import Conditions, TextFeatures
from pixsigma.many import Denoised, draw_many, stream_many
from pixsigma.models.decoding import autoencoder_in, colours_of
from pixsigma.models.quantized import has_int8
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.placement import Placement, choose_device, release
from pixsigma.prompting import steering_of, warn_of_unread
from pixsigma.quantize import check_mode, quantized
from pixsigma.shapes import Images, Latents
from pixsigma.weights.build import ALL_PARTS, Components, load_components
from pixsigma.weights.folder import save_folder
from pixsigma.weights.quantized import CPU_MODES

if TYPE_CHECKING:
    from pixsigma.requests import GenerationRequest


def _here(call: Callable[..., Any], *arguments: Any) -> Any:
    return call(*arguments)


class PixArtSigmaPipeline:
    """PixArt-Σ, PixArt-α and `mini`: text to pictures.

    `pipe(prompt)` takes and gives what diffusers' pipeline of the same name does;
    `pipe.stream(prompt, …)` yields every step and is what programs should use.
    """

    def __init__(self, components: Components) -> None:
        self.name = components.name
        self.variant = components.variant
        self.max_tokens, self.default_guidance = components.max_tokens, components.guidance_scale
        self.transformer: Any = components.transformer
        self.text_encoder: Any = components.text_encoder
        self.vae: Any = components.autoencoder
        self.sampler: Sampler = components.sampler
        self.schedule = components.schedule
        self.config = components.transformer.config if components.transformer else None
        self.placement = Placement()
        self.decoding = "whole"
        """How the autoencoder works, a name of `models.decoding.WAYS`: whole; in strips, the same
        in less memory; or in blended tiles, whose norms and attention see one tile alone."""
        self.loras, self.controls = adapters.LoraStack(), controls.Shelf()

    # Loading, saving, placing

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "mini",
        *,
        torch_dtype: torch.dtype | None = None,
        use_safetensors: bool | None = None,
        variant: str | None = None,
        text_and_vae: str | Path | None = None,
        quantize: str | None = None,
        stream_text: bool | int = False,
        prompt_cache: str | Path | None = None,
        **parts: Any,
    ) -> "PixArtSigmaPipeline":
        """Load `mini`, a folder, a `.pth`, a `.safetensors` or a hub name.

        `transformer=`, `text_encoder=`, `vae=`, `sampler=` replace a part, None leaves it out;
        what is replaced is not read. `quantize` gives the transformer fewer bits: `int8` on a CPU,
        a mode of torchao on a GPU (docs/performance.md). `stream_text` leaves the text encoder in
        its file, to be read layer by layer for each prompt (a number: of which so many bytes stay);
        `prompt_cache` is a folder that keeps what it answers, so that a prompt which comes again
        does without it. Raises WeightsError, InputError or MissingExtraError.
        """
        fields = {"vae": "autoencoder"} | {k: k for k in ("transformer", "text_encoder", "sampler")}
        if unknown := sorted(parts.keys() - fields.keys()):
            raise InputError(
                f"from_pretrained knows the parts {', '.join(fields)}; got {', '.join(unknown)}"
            )
        check_mode(quantize)
        replaced = {fields[key]: part for key, part in parts.items()}
        wanted = [part for part in ALL_PARTS if part not in replaced]
        components = load_components(
            name,
            dtype=torch_dtype or torch.float32,
            parts=wanted,
            text_and_vae=text_and_vae,
            file_variant=variant,
            use_safetensors=use_safetensors,
            int8=quantize if quantize in CPU_MODES else None,
            stream_text=stream_text,
            prompt_cache=prompt_cache,
        )
        pipe = cls(dataclasses.replace(components, **replaced))
        if quantize is not None:
            pipe.quantize(quantize)
        return pipe

    def quantize(self, mode: str = "int8", *, keep: str | None = None) -> None:
        """Give the transformer fewer bits, for good; `keep` is a pattern of layers to leave.

        Adapters are fused first. Raises InputError, MissingExtraError.
        """
        adapters.refuse_unfused(self)
        network = cast(PixArtTransformer, adapters.network_of(self))
        self.transformer = quantized(network, mode, keep=keep)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder layout of diffusers; raises InputError where adapters are not fused."""
        adapters.refuse_unfused(self)
        save_folder(
            Path(folder),
            transformer=self.transformer,
            text_encoder=self.text_encoder,
            autoencoder=self.vae,
            sampler=self.sampler,
            schedule=self.schedule,
            variant=self.variant,
            guidance_scale=self.default_guidance,
        )

    @property
    def modules(self) -> tuple[Any, ...]:
        """The networks, None where left out."""
        text = self.text_encoder.encoder if self.text_encoder is not None else None
        return text, self.transformer, self.vae

    def to(self, device: str | torch.device) -> "PixArtSigmaPipeline":
        """Keep everything on `device` (`auto`, `cpu`, `cuda`, `mps`)."""
        return self._place(Placement(choose_device(str(device)), "resident"))

    def enable_model_cpu_offload(self, device: str = "auto") -> None:
        """Keep parts in main memory and bring one at a time to `device`."""
        self._place(Placement(choose_device(device), "model"))

    def enable_sequential_cpu_offload(self, device: str = "auto") -> None:
        """Keep parts in main memory and bring one layer at a time to `device`."""
        self._place(Placement(choose_device(device), "sequential"))

    def _place(self, placement: Placement) -> "PixArtSigmaPipeline":
        if self.transformer is not None and has_int8(self.transformer):
            check_mode("int8", placement.device)
        release(*self.modules)
        self.placement = placement
        placement.settle(*self.modules)
        return self

    @property
    def device(self) -> torch.device:
        """Where the parts compute."""
        return self.placement.device

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the transformer was trained on."""
        side = self.transformer_config.sample_size * self.factor
        return side, side

    @property
    def transformer_config(self) -> TransformerConfig:
        """What the transformer is; known even when a compiled one took its place."""
        if self.config is None:
            raise MissingWeightsError(
                "this pipeline was built without a transformer: pass one to from_pretrained"
            )
        return self.config

    @property
    def factor(self) -> int:
        """Pixels a side for one latent."""
        return 8 if self.vae is None else self.vae.config.factor

    # Adapters

    load_lora = adapters.load_lora
    set_loras = adapters.set_loras
    unload_loras = adapters.unload_loras
    fuse_loras = adapters.fuse_loras
    load_control = controls.load_control
    unload_controls = controls.unload_controls

    # The form to use in programs

    __call__ = call_as_diffusers

    def stream(self, request: "GenerationRequest | str", **settings: Any) -> Iterator[Step]:
        """Yield the stages of one request; cancel by not asking for the next step.

        `request` is a GenerationRequest or a prompt; `settings` are its fields, where `image` and
        `mask` may be pictures of PIL too. Every picture has its own seed (seed, seed + 1, …), so it
        depends on nothing beside it. The last step has `stage == "done"` and the images. Raises
        InputError, NotFiniteError, OutOfMemoryError.
        """
        request = as_request(request, settings)
        yield from self.stages(request, adapters.read_choices(self, request.loras), self.denoised)

    stream_many = stream_many
    draw_many = draw_many

    def stages(
        self,
        request: "GenerationRequest",
        loras: adapters.Weighted,
        denoised: Denoised,
        away: Callable[..., Any] = _here,
    ) -> Iterator[Step]:
        """The stages of a request whose adapters are read; `denoised` runs the loop, `away` calls
        what needs no transformer.
        """
        plan = away(planned, request, self.default_size, self.multiple)
        followed = controls.follower(self, request.control, plan.whole, plan.canvas)
        first_seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        seeds = tuple(first_seed + k for k in range(request.num_images))
        sampler = sampler_for(request.sampler, request.eta, request.guidance)
        warn_of_unread(self.text_encoder, request.prompt)
        grid = sampler.levels(self.schedule, request.num_inference_steps)
        grids = [shortened(grid, each.strength) for each in plan.rounds]
        total = sum(len(levels) - 1 for levels in grids)
        yield Step("text", total=total, seeds=seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = plan.canvas.source() if plan.canvas else None
        before = 0
        for each, levels in zip(plan.rounds, grids, strict=True):
            # A prompt's schedule runs over the steps of a round; strength 0 has none.
            num = max(1, len(levels) - 1)
            steering = away(steering_of, self, request, num, each.size, plan.canvas)
            text, scale = steering.texts[0][0].features, steering.scale
            drawing = dataclasses.replace(
                self.drawing(text, None, scale, levels, each.size, generators, seen=each.seen),
                steering=steering,
                given=away(self.given, plan, each, images),
                fast=request.shortcuts,
                window=each.tile(self.factor),
                controls=away(followed, levels, each.size),
            )
            for step in denoised(sampler, drawing, loras):
                index = before + step.index
                last = dataclasses.replace(step, index=index, total=total, seeds=seeds)
                yield last
            before = index
            yield dataclasses.replace(last, stage="decoding")
            assert last.latents is not None
            images = away(self.decode, last.latents)
        assert images is not None
        yield dataclasses.replace(last, stage="done", images=away(plan.finished, images))

    # The three rooms that a prompt goes through

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_tokens: int | None = None) -> TextFeatures:
        """Features of the prompts, one row each, on the pipeline's device.

        Warns where a prompt has more than `max_tokens` (the model's own limit where not given).
        """
        if self.text_encoder is None:
            raise MissingWeightsError(
                "this pipeline has no text encoder: pass prompt_embeds and negative_prompt_embeds"
            )
        with self.placement.running(self.text_encoder.encoder):
            return self.text_encoder.encode(
                prompts, max_length=max_tokens or self.max_tokens, device=self.device
            )

    @torch.no_grad()
    def encode_null(self, text: TextFeatures) -> TextFeatures:
        """The authors' null caption: T5's answer to "" with its padding, seen through the mask of
        `text` (B, L, E), as in their training and sampling; diffusers uses the mask of "" itself.
        """
        with self.placement.running(self.text_encoder.encoder):
            null = self.text_encoder.encode(
                [""], max_length=self.max_tokens, pad_to_max_length=True, device=self.device
            )
        num, length = text.mask.shape
        return TextFeatures(null.embeddings[:, :length].expand(num, -1, -1), text.mask)

    @torch.no_grad()
    def denoised(
        self, sampler: Sampler, drawing: Drawing, loras: adapters.Weighted = ()
    ) -> Iterator[Step]:
        """Yield the denoising steps; `loras` come on top of the pipeline's own."""
        with adapters.adapted(self, loras) as network, controls.placed(self, drawing.controls):
            for step in denoise(network, sampler, self.schedule, drawing):
                yield dataclasses.replace(step, preview=partial(self.preview, step.latents))

    @torch.no_grad()
    def encode_pictures(self, images: Images) -> Latents:
        """Scaled latents of pictures (B, 3, height, width), one at a time, on the device.

        Raises NotFiniteError where the autoencoder overflows.
        """
        if self.vae is None:
            raise MissingWeightsError("this pipeline has no autoencoder, which pictures need")
        with self.placement.running(self.vae):
            encode = autoencoder_in(self.decoding, self.vae).encode
            rows = images.to(self.device).split(1)
            latents = torch.cat([encode(row).float() for row in rows])
        refuse_nan(latents, "the autoencoder", "latents")
        return latents

    def given(self, plan: Plan, each: Round, images: Images | None) -> Known | None:
        """What a round begins from: the plan's picture, or what the round before has drawn."""
        mask = plan.canvas.latent_mask(self.factor) if plan.canvas else None
        if images is None or (each.strength == 1 and mask is None):
            return None
        latents = self.encode_pictures(covering(images, each.size))
        mask = None if mask is None else mask.to(latents.device)
        return Known(latents, mask, from_noise=each.strength == 1)

    @torch.no_grad()
    def decode(self, latents: Latents) -> Images:
        """Pictures (B, 3, height, width) in about [-1, 1], one at a time to bound the memory.

        Raises NotFiniteError where the autoencoder overflows.
        """
        if self.vae is None:
            raise MissingWeightsError('this pipeline has no autoencoder: use output_type="latent"')
        with self.placement.running(self.vae):
            decode = autoencoder_in(self.decoding, self.vae).decode
            images = torch.cat([decode(row).float() for row in latents.split(1)])
        refuse_nan(images, "the autoencoder", "picture")
        return images

    def preview(self, latents: Latents | None) -> Any:
        """A small PIL image of the first picture, by a linear map from latents to colours."""
        if latents is None or self.vae is None:
            return None
        return pictures.preview(latents[:1].float().cpu(), self._preview_matrix)

    @cached_property
    @torch.no_grad()
    def _preview_matrix(self) -> Tensor:
        with self.placement.running(self.vae):
            return colours_of(self.vae, self.transformer_config.in_channels, self.device)

    def drawing(
        self,
        text: TextFeatures,
        negative: TextFeatures | None,
        guidance_scale: float,
        levels: tuple[Level, ...],
        size: tuple[int, int],
        generators: Sequence[torch.Generator],
        latents: Latents | None = None,
        on_step: OnStep | None = None,
        seen: tuple[int, int] | None = None,
    ) -> Drawing:
        """Bring everything that the loop needs to the device.

        One generator draws for the whole batch; several draw for a picture each. `seen` is the
        size that micro-conditions tell, where the network sees tiles.
        """
        dtype = self.dtype
        num = max(len(text.mask), len(generators))
        height, width = (side // self.factor for side in size)
        shape = num, self.transformer_config.in_channels, height, width
        draw = partial(draw_noise, shape, generators)
        latents = first_noise(draw, latents, shape)
        conditions = None
        if self.transformer_config.use_additional_conditions:
            size_rows = torch.tensor([seen or size], device=self.device).expand(num, 2)
            conditions = Conditions(size_rows.float(), size_rows[:, :1] / size_rows[:, 1:])
        return Drawing(
            latents.to(self.device, torch.float32),
            text.trimmed().to(self.device, dtype),
            negative.trimmed().to(self.device, dtype) if negative else None,
            guidance_scale,
            levels,
            lambda: draw().to(self.device),
            conditions,
            on_step,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the transformer computes in."""
        return next(p.dtype for p in self.transformer.parameters() if p.is_floating_point())

    @property
    def multiple(self) -> int:
        """What heights and widths in pixels must be multiples of."""
        return self.factor * self.transformer_config.patch_size
