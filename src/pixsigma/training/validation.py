"""What a run shows on its way: prompts drawn with fixed seeds, the loss on held-out pictures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pixsigma.data.features import Features
from pixsigma.data.shards import open_features
from pixsigma.diffusers_call import PipelineOutput
from pixsigma.diffusion.samplers.base import Sampler
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError
from pixsigma.interfaces import Denoiser
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.training.control import Following, following
from pixsigma.training.recipe import Recipe
from pixsigma.training.sections import ValidationSection
from pixsigma.training.step import loss_at
from pixsigma.weights.build import load_components

GRID = 10
"""Timesteps at which the held-out loss is measured: the middles of equal parts."""

MOST = 256
"""Held-out pictures that are looked at."""

SHEET = "over-time.png"


@torch.no_grad()
def held_out_loss(
    denoiser: Denoiser, schedule: NoiseSchedule, data: Features, device: torch.device
) -> float:
    """Mean loss over a fixed grid of timesteps, with noise and captions that never change."""
    rng = torch.Generator().manual_seed(0)
    steps = schedule.config.num_train_timesteps
    grid = ((torch.arange(GRID) + 0.5) / GRID * steps).long()
    losses = []
    for bucket in range(len(data.latent_shapes)):
        rows = (data.bucket_of == bucket).nonzero()[:MOST, 0]
        for part in rows.split(32):
            batch = data.batch(part, 0.0, rng).to(device)
            asked = following(denoiser, batch) if isinstance(denoiser, Following) else denoiser
            eps = torch.randn(batch.latents.shape, generator=rng).to(device)
            for t in grid:
                when = t.expand(len(part)).to(device)
                losses.append(loss_at(asked, schedule, batch, when, eps))
    return float(torch.cat(losses).mean())


def due(section: ValidationSection, before: int, step: int, steps: int) -> bool:
    """Whether it is time to look, `before` being the step of the report before."""
    if not section.prompts and section.features is None:
        return False
    return step // section.every > before // section.every or step == steps


class Validation:
    """Measures and draws with the averaged weights of a run."""

    def __init__(
        self, recipe: Recipe, out: Path, schedule: NoiseSchedule, sampler: Sampler
    ) -> None:
        """Reads the base's text encoder and autoencoder; raises WeightsError or InputError."""
        self.section: ValidationSection = recipe.validation
        self.folder, self.schedule = out / "samples", schedule
        held_out = self.section.features
        self.data = None if held_out is None else open_features(held_out)
        self.pipe = None
        if self.section.prompts:
            assert recipe.base is not None, "the recipe refuses prompts without a base"
            parts = load_components(recipe.base, parts=("text_encoder", "autoencoder"))
            drawn = dataclasses.replace(parts, schedule=schedule, sampler=sampler)
            self.pipe = PixArtSigmaPipeline(drawn)
            prompts = list(self.section.prompts)
            self.text = self.pipe.encode(prompts)
            self.null = self.pipe.encode([""] * len(prompts))
            self.pipe.text_encoder = None  # it may be larger than everything else

    def look(self, model: PixArtTransformer | Following, step: int) -> dict[str, Any]:
        """`held_out_loss` and `picture`, as `Progress` has them, of what the recipe asks for."""
        device = next(model.parameters()).device
        found: dict[str, Any] = {}
        if self.data is not None:
            found["held_out_loss"] = held_out_loss(model, self.schedule, self.data, device)
        if self.pipe is not None:
            assert isinstance(model, PixArtTransformer), "a control has no prompts"
            found["picture"] = self.draw(model, step)
        return found

    def draw(self, model: PixArtTransformer, step: int) -> Path:
        """Write `samples/STEP.png`, one picture a prompt, and the sheet of all steps so far."""
        assert self.pipe is not None
        self.pipe.transformer, self.pipe.config = model, model.config
        side = model.config.sample_size * self.pipe.factor
        output = self.pipe(
            prompt_embeds=self.text.embeddings,
            prompt_attention_mask=self.text.mask,
            negative_prompt_embeds=self.null.embeddings,
            negative_prompt_attention_mask=self.null.mask,
            height=side,
            width=side,
            guidance_scale=self.section.guidance_scale,
            num_inference_steps=self.section.num_inference_steps,
            generator=[torch.Generator().manual_seed(i) for i in range(len(self.text.mask))],
            use_resolution_binning=False,
        )
        assert isinstance(output, PipelineOutput), "a plain call returns pictures by name"
        self.pipe.transformer = None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{step:08}.png"
        tiled(output.images, columns=len(output.images)).save(path)
        rows = [Image.open(p) for p in sorted(self.folder.glob("[0-9]*.png"))]
        tiled(rows, columns=1).save(self.folder / SHEET)
        return path


def tiled(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size side by side and below each other; raises InputError for none."""
    if not pictures:
        raise InputError("a sheet needs at least one picture")
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
