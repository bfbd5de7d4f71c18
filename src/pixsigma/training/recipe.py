"""What a training run is: frozen values read from one TOML file."""

import difflib
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError, model_validator

from pixsigma.errors import InputError
from pixsigma.training.sections import (
    AdapterSection,
    ControlSection,
    DistillSection,
    LossSection,
    ModelSection,
    OptimizerSection,
    PriorSection,
    RunSection,
    Section,
    ValidationSection,
)


class Recipe(Section):
    """One run of `pixsigma train`."""

    features: Path
    base: str | None = None
    """The model (as `--model`) whose text encoder and autoencoder made the features: they go with
    the trained transformer, and draw the validation's prompts."""
    max_tokens: int | None = Field(default=None, gt=1)
    """Tokens of a prompt that the trained model reads; none is as in `base`."""
    model: ModelSection
    adapter: AdapterSection | None = None
    """Train these few weights and leave the model's as they are."""
    control: ControlSection | None = None
    """Train a ControlNet and leave the model's weights as they are."""
    prior: PriorSection | None = None
    distill: DistillSection | None = None
    """Learn few steps from a teacher, in place of the loss."""
    loss: LossSection = LossSection()
    optimizer: OptimizerSection
    run: RunSection
    validation: ValidationSection = ValidationSection()

    @model_validator(mode="after")
    def _prompts_need_a_base(self) -> "Recipe":
        if self.validation.prompts and self.base is None:
            raise ValueError("validation.prompts need base, whose text encoder reads them")
        return self

    @model_validator(mode="after")
    def _adapters_need_a_model_as_it_is(self) -> "Recipe":
        if self.adapter is not None and (self.model.init_from is None or self.model.told):
            told = ", ".join(self.model.told) or "no init_from"
            raise ValueError(
                "an adapter is for a published model as it is: [model] has init_from and nothing "
                f"else, got {told}"
            )
        return self

    @model_validator(mode="after")
    def _controls_need_a_model_as_it_is(self) -> "Recipe":
        if self.control is None:
            return self
        if self.model.init_from is None or self.model.told:
            told = ", ".join(self.model.told) or "no init_from"
            raise ValueError(
                "a ControlNet is for a trained model as it is: [model] has init_from and nothing "
                f"else, got {told}"
            )
        if self.adapter is not None or self.distill is not None:
            raise ValueError("a run trains one thing: [control], [adapter] or [distill]")
        if self.validation.prompts:
            raise ValueError(
                "a ControlNet draws from hints, which validation.prompts have not: leave them "
                "out; validation.features with hints are measured"
            )
        return self

    @model_validator(mode="after")
    def _distilling_has_its_own_loss(self) -> "Recipe":
        if self.distill is None:
            return self
        if self.model.init_from is None:
            raise ValueError("distill needs init_from: a student begins as its teacher")
        told = self.loss.model_fields_set - {"prediction_type"}
        if told or self.prior is not None or self.validation.features is not None:
            said = [f"loss.{key}" for key in sorted(told)]
            said += ["prior"] * (self.prior is not None)
            said += ["validation.features"] * (self.validation.features is not None)
            raise ValueError(f"distill has a loss of its own, leave out {', '.join(said)}")
        if self.validation.prompts and self.validation.guidance_scale != 1:
            raise ValueError(
                "distill puts guidance into the student: validation.guidance_scale must be 1, got "
                f"{self.validation.guidance_scale}"
            )
        return self

    @model_validator(mode="after")
    def _parts_are_of_whole_models(self) -> "Recipe":
        if not self.run.shard:
            return self
        others = {"adapter": self.adapter, "control": self.control, "distill": self.distill}
        said = [name for name, section in others.items() if section is not None]
        said += ["fp16"] * (self.run.mixed_precision == "fp16")
        said += [self.optimizer.name] * (self.optimizer.name in ("adafactor", "adamw8bit"))
        if said:
            raise ValueError(
                f"run.shard does not go with {', '.join(said)}: leave it out, and every process "
                "has all weights (DDP)"
            )
        return self

    @model_validator(mode="after")
    def _one_scale_serves_one_optimizer(self) -> "Recipe":
        if self.optimizer.name == "muon" and self.run.mixed_precision == "fp16":
            raise ValueError(
                "muon is two optimisers, and the scale of fp16's gradients serves one: take bf16, "
                "or another optimizer.name"
            )
        return self

    @property
    def remarks(self) -> list[str]:
        """What a person should hear before the first step."""
        batch, optimizer = self.run.batch_size, self.optimizer
        if optimizer.scale_rate == "no":
            return []
        return [
            f"learning rate {optimizer.learning_rate:g} becomes "
            f"{optimizer.scaled(batch).learning_rate:g}: {optimizer.scale_rate} in the batch of "
            f"{batch} over 256, as scale_rate asks"
        ]


MAY_CHANGE = (
    "optimizer.learning_rate",
    "optimizer.matrix_learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.cooldown_share",
    "optimizer.clip_norm",
    "run.steps",
    "run.accumulate",
    "run.gradient_checkpointing",
    "run.device",
    "run.compile",
    "run.shard",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.log_every",
    "run.trackers",
    "validation",
)
"""Keys and sections that a resumed run may have otherwise than before."""


def read_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a TOML recipe; `overrides` maps `section.key` to a value.

    Raises InputError that names the first wrong key.
    """
    values = read_toml(path)
    for dotted, value in (overrides or {}).items():
        override(values, dotted, value)
    try:
        return Recipe(**values)
    except ValidationError as error:
        raise InputError(f"the recipe {path}: {first_mistake(error, Recipe)}") from error


def override(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `section.key`; in a list of tables a section is the `name` of one.

    Raises InputError where the way leads through something else.
    """
    *sections, key = dotted.split(".")
    place: Any = values
    for section in sections:
        place = _inside(place, section, dotted)
    if not isinstance(place, dict):
        raise InputError(f"--set {dotted}: {sections[-1]} is no section")
    place[key] = value


def _inside(place: Any, section: str, dotted: str) -> Any:
    if isinstance(place, dict):
        return place.setdefault(section, {})
    if not isinstance(place, list):
        raise InputError(f"--set {dotted}: {section} would lie inside a value, {place!r}")
    named = [each for each in place if each.get("name") == section]
    if not named:
        names = ", ".join(str(each.get("name")) for each in place)
        raise InputError(f"--set {dotted}: there is no {section}, only {names}")
    return named[0]


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a file; raises InputError."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"the recipe {path} cannot be read: {error}") from error


def first_mistake(error: ValidationError, whole: type[Section]) -> str:
    """One sentence; an unknown key comes with the nearest one that there is."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] != "extra_forbidden":
        return f"{place}: {said}" if place else said
    section: Any = whole
    for name in first["loc"][:-1]:
        if isinstance(name, int):  # of a list, whose items are of one kind
            continue
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
