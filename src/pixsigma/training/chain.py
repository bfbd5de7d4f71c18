"""Weak to strong (PixArt-Σ, section 3.3): one recipe after the other, each beginning with the last.

A chain is a TOML file with what all stages share and a `[[stage]]` for each. Stages are named after
what they do to a model: they take another autoencoder, a higher resolution, longer texts, or
compress keys and values.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from pixsigma.data.shards import open_features, read_index
from pixsigma.errors import InputError, MissingWeightsError
from pixsigma.training.checkpoint import checkpoints
from pixsigma.training.recipe import Recipe, first_mistake, override, read_toml
from pixsigma.training.run import train
from pixsigma.training.sections import KVSection, Section
from pixsigma.training.trainer import Progress

NATIVE = 512
"""Side in pixels at which positions are not interpolated (Σ, section 3.3)."""

NEEDS = {
    "swap-autoencoder": "base",
    "raise-resolution": "resolution",
    "lengthen-text": "max_tokens",
    "compress-kv": "kv_compression",
}
"""What a stage of each kind must tell; `base` and `resolution` any other may tell as well."""


class StageSection(Section):
    """One run of a chain."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Of its folder."""
    verb: Literal["swap-autoencoder", "raise-resolution", "lengthen-text", "compress-kv"]
    features: Path
    """Prepared with this stage's autoencoder, resolution and length of texts."""
    base: str | None = None
    """The model whose text encoder and autoencoder made them; none is that of the stage before."""
    resolution: int | None = Field(default=None, gt=0, multiple_of=8)
    """Side in pixels; positions span then what they span in Σ at every size."""
    max_tokens: int | None = Field(default=None, gt=1)
    kv_compression: KVSection | None = None
    loss: dict[str, Any] = Field(default_factory=dict)
    optimizer: dict[str, Any] = Field(default_factory=dict)
    run: dict[str, Any] = Field(default_factory=dict)
    validation: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _tells_what_its_verb_needs(self) -> "StageSection":
        for verb, key in NEEDS.items():
            given = getattr(self, key) is not None
            if verb == self.verb and not given:
                raise ValueError(f"stage {self.name}: {verb} needs {key}")
            if verb != self.verb and given and key not in ("base", "resolution"):
                raise ValueError(f"stage {self.name}: {key} is for {verb}, not {self.verb}")
        return self

    @property
    def model(self) -> dict[str, Any]:
        """What changes in the network."""
        told: dict[str, Any] = {}
        if self.resolution is not None:
            told["sample_size"] = self.resolution // 8
            told["interpolation_scale"] = self.resolution / NATIVE
        if self.kv_compression is not None:
            told["kv_compression"] = self.kv_compression.model_dump()
        return told


class Chain(Section):
    """Stages, and what they share."""

    init_from: str
    """The model that the first stage begins with."""
    base: str
    """The model (as `--model`) whose text encoder and autoencoder the first stage has."""
    loss: dict[str, Any] = Field(default_factory=dict)
    optimizer: dict[str, Any] = Field(default_factory=dict)
    run: dict[str, Any] = Field(default_factory=dict)
    validation: dict[str, Any] = Field(default_factory=dict)
    stage: tuple[StageSection, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "Chain":
        names = [stage.name for stage in self.stage]
        if len(set(names)) < len(names):
            raise ValueError(f"each stage has its own name, got {', '.join(names)}")
        return self

    def recipes(self, out: Path) -> dict[str, Recipe]:
        """The stages as recipes by name, to be run in `out`; raises InputError."""
        found: dict[str, Recipe] = {}
        before, base, tokens = self.init_from, self.base, None
        for stage in self.stage:
            base, tokens = stage.base or base, stage.max_tokens or tokens
            values: dict[str, Any] = {
                key: getattr(self, key) | getattr(stage, key)
                for key in ("loss", "optimizer", "run", "validation")
            }
            values |= {"features": stage.features, "base": base, "max_tokens": tokens}
            values["model"] = {"init_from": before, **stage.model}
            try:
                found[stage.name] = Recipe(**values)
            except ValidationError as error:
                raise InputError(f"stage {stage.name}: {first_mistake(error, Recipe)}") from error
            before = str(out / stage.name)
        return found


def is_chain(path: Path) -> bool:
    """Whether a file has stages; raises InputError where it cannot be read."""
    return "stage" in read_toml(path)


def read_chain(path: Path, overrides: Mapping[str, Any] | None = None) -> Chain:
    """Read a chain; `overrides` maps `run.key` or `stage.NAME.run.key` to a value.

    Raises InputError that names the first wrong key of any stage.
    """
    values = read_toml(path)
    for dotted, value in (overrides or {}).items():
        override(values, dotted, value)
    try:
        chain = Chain(**values)
    except ValidationError as error:
        raise InputError(f"the chain {path}: {first_mistake(error, Chain)}") from error
    chain.recipes(Path("run"))
    return chain


def train_chain(
    chain: Chain, out: Path, *, resume: bool = False, stop: Callable[[], bool] = lambda: False
) -> Iterator[Progress]:
    """Train every stage in `out`/NAME; resumed, those that are done are left as they are.

    Raises InputError or WeightsError before the first step where features are missing.
    """
    recipes = chain.recipes(out)
    held = [name for name in recipes if checkpoints(out / name)]
    if held and not resume:
        raise InputError(
            f"{out} holds stages already ({', '.join(held)}): go on with them (--resume), or "
            "choose another folder"
        )
    if resume and not held:
        raise MissingWeightsError(f"{out} has no stage to go on with; begin without --resume")
    for name, recipe in recipes.items():
        refuse_short_texts(name, recipe)
    for name, recipe in recipes.items():
        folder = out / name
        if finished(folder, recipe):
            continue
        for progress in train(recipe, folder, resume=bool(checkpoints(folder)), stop=stop):
            yield dataclasses.replace(progress, stage=name)
        if not finished(folder, recipe):
            return  # stopped


def finished(folder: Path, recipe: Recipe) -> bool:
    """Whether a stage's last checkpoint is of its last step."""
    kept = checkpoints(folder)
    return bool(kept) and int(kept[-1].stem) >= recipe.run.steps


def refuse_short_texts(name: str, recipe: Recipe) -> None:
    """Raise InputError where features were cut at another length than the stage tells.

    WeightsError where there are none.
    """
    open_features(recipe.features, long_captions=recipe.run.long_captions)
    if recipe.max_tokens is None or not recipe.features.is_dir():
        return
    there = read_index(recipe.features).get("max_tokens")
    if there != recipe.max_tokens:
        raise InputError(
            f"stage {name} reads texts of {recipe.max_tokens} tokens, {recipe.features} was "
            f"prepared with {there}: pixsigma prepare --max-tokens {recipe.max_tokens}"
        )
