"""What a training run is: frozen values read from one TOML file."""

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pixsigma.config import KVCompression
from pixsigma.errors import InputError


class Section(BaseModel):
    """Part of a recipe; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KVSection(Section):
    """Key-value compression of some blocks; names as in `KVCompression`."""

    layers: tuple[int, ...]
    ratio: int = 2


class ModelSection(Section):
    """The transformer to train; names as in `TransformerConfig`.

    With `init_from`, what is left out is as there; a fresh model needs the first six told.
    """

    num_layers: int | None = None
    num_attention_heads: int | None = None
    attention_head_dim: int | None = None
    caption_channels: int | None = None
    sample_size: int | None = None
    interpolation_scale: float | None = None
    qk_norm: bool | None = None
    kv_compression: KVSection | None = None
    """Where `init_from` has none, it is inserted as an average (Σ, section 3.3)."""
    init_from: str | None = None
    """A model to start from (as `--model`): its positions are interpolated to `sample_size`."""

    @model_validator(mode="after")
    def _whole(self) -> "ModelSection":
        fresh = set(ModelSection.model_fields) - {"qk_norm", "kv_compression", "init_from"}
        missing = sorted(name for name in fresh if getattr(self, name) is None)
        if self.init_from is None and missing:
            raise ValueError(f"without init_from a model needs {', '.join(missing)}")
        return self

    @property
    def told(self) -> dict[str, Any]:
        """What the recipe says of the network, as `TransformerConfig` takes it."""
        told = self.model_dump(exclude={"init_from"}, exclude_none=True)
        if self.kv_compression is not None:
            told["kv_compression"] = KVCompression(**told["kv_compression"])
        return told


class LossSection(Section):
    """The objective."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """What the network learns to predict; epsilon as published. Where a run is short, v tells
    more at high noise, where an error of eps is x0's divided by sigma / alpha."""
    min_snr_gamma: float | None = None
    """Hang et al. 2023; none is the published loss."""
    timesteps: Literal["uniform", "stratified", "logit-normal"] = "uniform"
    """Logit-normal (Esser et al. 2024) sees the middle of the schedule more often."""
    noise_offset: float = Field(default=0.0, ge=0)
    """Deviation of noise that is shared by all pixels of a channel (Guttenberg 2023)."""


class OptimizerSection(Section):
    """How weights move. Muon serves the matrices of the blocks, AdamW everything else."""

    name: Literal["adamw", "muon", "came", "adafactor"] = "adamw"
    learning_rate: float = Field(gt=0)
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    """After warm-up: stable, then linear to 0 over `cooldown_share`; a cosine to 0; or stable."""
    warmup_steps: int = Field(default=100, ge=0)
    cooldown_share: float = Field(default=0.25, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)


class RunSection(Section):
    """Length, batches and what is kept."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    """Pictures a step, over all processes."""
    accumulate: int = Field(default=1, gt=0)
    """Parts that a process's share is cut into: less memory, the same step."""
    seed: int = 0
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    long_captions: float | None = Field(default=None, ge=0, le=1)
    """Share of long captions where a picture has both kinds; none draws among all alike."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass: less memory, a third slower."""
    device: Literal["auto", "cpu"] = "auto"
    compile: bool = False
    checkpoint_every: int = Field(default=200, gt=0)
    keep_checkpoints: int = Field(default=1, gt=0)
    log_every: int = Field(default=20, gt=0)

    @model_validator(mode="after")
    def _parts_are_equal(self) -> "RunSection":
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate: {self.batch_size}, {self.accumulate}"
            )
        return self


class ValidationSection(Section):
    """What is drawn and measured on the way, with the averaged weights."""

    every: int = Field(default=500, gt=0)
    prompts: tuple[str, ...] = ()
    """Drawn with fixed seeds; needs `base`."""
    num_inference_steps: int = Field(default=20, gt=0)
    guidance_scale: float = Field(default=4.5, ge=0)
    features: Path | None = None
    """Held-out pictures, prepared as those of training."""


class Recipe(Section):
    """One run of `pixsigma train`."""

    features: Path
    base: str | None = None
    """The model (as `--model`) whose text encoder and autoencoder made the features: they go with
    the trained transformer, and draw the validation's prompts."""
    model: ModelSection
    loss: LossSection = LossSection()
    optimizer: OptimizerSection
    run: RunSection
    validation: ValidationSection = ValidationSection()

    @model_validator(mode="after")
    def _prompts_need_a_base(self) -> "Recipe":
        if self.validation.prompts and self.base is None:
            raise ValueError("validation.prompts need base, whose text encoder reads them")
        return self


MAY_CHANGE = (
    "optimizer.learning_rate",
    "optimizer.matrix_learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.cooldown_share",
    "optimizer.clip_norm",
    "run.steps",
    "run.gradient_checkpointing",
    "run.device",
    "run.compile",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.log_every",
    "validation",
)
"""Keys and sections that a resumed run may have otherwise than before."""


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
        raise InputError(f"the recipe {path}: {_first_mistake(error)}") from error


def _first_mistake(error: ValidationError) -> str:
    """One sentence; an unknown key comes with the nearest one that there is."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] != "extra_forbidden":
        return f"{place}: {said}" if place else said
    section: Any = Recipe
    for name in first["loc"][:-1]:
        annotation = section.model_fields[name].annotation
        section = next(iter(get_args(annotation)), annotation)
    near = difflib.get_close_matches(str(first["loc"][-1]), section.model_fields, n=1)
    return f"{place} is no key; " + (
        f"is {near[0]} meant?" if near else f"there are {', '.join(section.model_fields)}"
    )


def refuse_change(before: dict[str, Any], recipe: Recipe) -> None:
    """Raise InputError where a resumed recipe differs in what a run cannot change on its way."""
    old, new = _flat(before), _flat(recipe.model_dump(mode="json"))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    refused = [key for key in changed if not key.startswith(MAY_CHANGE)]
    if refused:
        told = ", ".join(f"{key} ({old.get(key)} before, {new.get(key)} now)" for key in refused)
        raise InputError(
            f"a resumed run must have the recipe that it began with; changed: {told}. Begin "
            f"another run, or change only {', '.join(MAY_CHANGE)}"
        )


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{before}{key}.") if inner else {before + key: value}
    return flat


def parse_override(text: str) -> tuple[str, Any]:
    """`section.key=value`, the value as in TOML or a bare string; raises InputError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set takes section.key=value, got {text!r}")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value
