"""What a run begins with: its network, fresh or another's, its teacher, and pictures that fit."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import torch

from pixsigma.config import TransformerConfig
from pixsigma.data.features import Features
from pixsigma.errors import MismatchError
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.presets import Variant
from pixsigma.training.adapter import sharing
from pixsigma.training.control import refuse_hints
from pixsigma.training.recipe import Recipe
from pixsigma.weights.build import Part, resolve
from pixsigma.weights.folder import open_transformer, read_sampler

TRANSFORMER: tuple[Part, ...] = ("transformer",)


def build_model(recipe: Recipe) -> tuple[PixArtTransformer, Variant | None]:
    """A fresh transformer, or one that begins with another's weights and is of its family."""
    section = recipe.model
    torch.manual_seed(recipe.run.seed)
    if section.init_from is not None:
        refuse_other_target(section.init_from, recipe)
        return stronger(section.init_from, section.told)
    model = PixArtTransformer(TransformerConfig(**section.told))
    model.init_weights()
    return model, None


def stronger(name: str, told: dict[str, Any]) -> tuple[PixArtTransformer, Variant]:
    """A trained model at another resolution, or with KV compression (weak to strong, Σ 3.3).

    No weight depends on the size of the picture: positions are interpolated by their scale alone.
    Compression comes in as an average of its tokens. Raises MismatchError for other differences.
    """
    opened = open_transformer(resolve(name, TRANSFORMER))
    weaker = opened.load(torch.float32)
    config = dataclasses.replace(weaker.config, **told)
    free = {key: getattr(config, key) for key in ("sample_size", "interpolation_scale")}
    if weaker.config.kv_compression is None:
        free["kv_compression"] = config.kv_compression
    same = dataclasses.replace(weaker.config, **free)
    if same != config:
        raise MismatchError(f"{name} is another model: {same}, not {config}")
    model = PixArtTransformer(config)
    model.init_weights()
    # Copies: what was read lies in the file's memory.
    lacking = model.load_state_dict(weaker.state_dict(), strict=False).missing_keys
    inserted = re.compile(r"blocks\.\d+\.attn\.(sr|norm)\.\w+")
    assert all(inserted.fullmatch(key) for key in lacking), "only compression may be new"
    return model, opened.detected.variant


def teacher_of(recipe: Recipe, model: PixArtTransformer) -> PixArtTransformer:
    """The frozen network that a student learns from; beneath an adapter its own weights."""
    assert recipe.distill is not None, "only a distillation has a teacher"
    name = recipe.distill.teacher
    if name is None and recipe.adapter is not None:
        return sharing(model, {})
    if name is not None:
        refuse_other_target(name, recipe)
    teacher = copy.deepcopy(model) if name is None else stronger(name, {})[0]
    return teacher.to(next(model.parameters()).device).requires_grad_(False).eval()


def refuse_other_target(name: str, recipe: Recipe) -> None:
    """Raise MismatchError where a model is known to predict something else than the loss asks."""
    path = resolve(name, TRANSFORMER)
    if not (path / "scheduler").is_dir():
        return  # weights alone do not tell
    there, asked = read_sampler(path)[1].config.prediction_type, recipe.loss.prediction_type
    if there != asked:
        raise MismatchError(
            f'{name} predicts {there}: say prediction_type = "{there}" under [loss], got {asked}. '
            "(A model that is to learn another begins with its transformer/ folder alone.)"
        )


def refuse_unmasked(data: Features, path: Path, recipe: Recipe) -> None:
    """Raise MismatchError where the loss reads masks that the features have not."""
    if recipe.loss.outside_mask is not None and not data.masked:
        raise MismatchError(
            f"loss.outside_mask needs masks, {path} has none: put NAME.mask.png beside pictures "
            "and prepare them again, or leave it out"
        )


def refuse_misfit(data: Features, path: Path, recipe: Recipe, config: TransformerConfig) -> None:
    """Raise MismatchError where the features at `path` are not what the network takes."""
    if data.text_width != config.caption_channels:
        raise MismatchError(
            f"text features in {path} have width {data.text_width}, the transformer "
            f"takes caption_channels = {config.caption_channels}: encode with its text encoder"
        )
    ratio = config.kv_compression.ratio if config.kv_compression else 1
    multiple = config.patch_size * ratio
    refuse_hints(data, path, recipe.control)
    for channels, height, width in data.latent_shapes:
        odd = height % multiple or width % multiple
        if channels != config.in_channels or odd:
            raise MismatchError(
                f"latents in {path} are ({channels}, {height}, {width}), the "
                f"transformer takes {config.in_channels} channels and multiples of {multiple} "
                f"(patches of {config.patch_size}, KV compression {ratio})"
            )
