"""What a training run is: frozen values read from one TOML file."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pixsigma.errors import InputError


class Section(BaseModel):
    """Part of a recipe; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """The transformer to train; names as in `TransformerConfig`."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    caption_channels: int
    sample_size: int
    interpolation_scale: float
    init_from: Path | None = None
    """A transformer folder to start from: its positions are interpolated to `sample_size`."""


class LossSection(Section):
    """The objective."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """What the network learns to predict; epsilon as published. Where a run is short, v tells
    more at high noise, where an error of eps is x0's divided by sigma / alpha."""
    min_snr_gamma: float | None = None
    """Hang et al. 2023; none is the published loss."""
    timesteps: Literal["uniform", "stratified"] = "uniform"


class OptimizerSection(Section):
    """Muon for the matrices of the blocks, AdamW for everything else; or AdamW for all."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float
    matrix_learning_rate: float = 0.02
    weight_decay: float = 0.0
    warmup_steps: int = 100
    cooldown_share: float = Field(0.25, ge=0, le=1)
    """Last part of the run over which the rate falls to 0 (warm-up, stable, decay)."""
    clip_norm: float = 1.0


class RunSection(Section):
    """Length, batches and what is kept."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    seed: int = 0
    caption_dropout: float = Field(0.1, ge=0, le=1)
    long_captions: float | None = Field(None, ge=0, le=1)
    """Share of long captions where a picture has both kinds; none draws among all alike."""
    ema_decay: float = 0.999
    compile: bool = False
    checkpoint_every: int = 200
    log_every: int = 20


class Recipe(Section):
    """One run of `pixsigma train`."""

    features: Path
    model: ModelSection
    loss: LossSection = LossSection()
    optimizer: OptimizerSection
    run: RunSection


def read_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a TOML recipe; `overrides` maps `section.key` to a value.

    Raises InputError that names the first wrong key.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"the recipe {path} cannot be read: {error}") from error
    for dotted, value in (overrides or {}).items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place_of = ".".join(map(str, first["loc"]))
        raise InputError(f"the recipe {path}: {place_of}: {first['msg']}") from error
