"""What a person or program asks for, checked at the door: one schema for every door."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pixsigma.buckets import check_size
from pixsigma.errors import InputError, PixsigmaError, PromptFileError
from pixsigma.fast_options import FAST, FastOptions
from pixsigma.guidance_options import LARGEST_SCALE, GuidanceOptions
from pixsigma.hints import KIND, PICTURE
from pixsigma.prompts.parse import parse
from pixsigma.prompts.tree import Clause, unparse, written
from pixsigma.styles import Style, style_from, style_named

LARGEST_SEED = 2**63 - 1
"""The largest number that seeds a generator of torch on every device."""

Side = Annotated[int, Field(ge=16, le=16384)]
"""One side of a picture in pixels."""

Extension = Annotated[int, Field(ge=0, le=8192)]
"""Pixels that a picture is continued by on one side."""


class LoraChoice(BaseModel):
    """An adapter for one request."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    path: str = Field(min_length=1, max_length=4096)
    """A file, or a folder of peft or diffusers."""
    weight: float = 1.0
    """Its strength; 0 leaves it off."""


Share = Annotated[float, Field(ge=0, le=1)]
"""A place in a picture, as a share of its width or height, or a step as a share of all."""


class ControlChoice(BaseModel):
    """A hint that the picture follows, by a ControlNet, or a picture as a prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: str = Field(pattern=KIND)
    """What the ControlNet follows: edges, depth, pose, or any word that names a loaded one;
    `picture` for an image prompt."""
    hint: str = Field(min_length=1, repr=False)
    """A picture in the shape of the drawing, of any shape for an image prompt: a path, or
    `data:image/png;base64,…`."""
    ready: bool = False
    """Whether it is a map of edges already, for the kind `edges`, which else makes one of it. Hints
    of other kinds are always ready."""
    network: str | None = Field(default=None, min_length=1, max_length=4096)
    """File or folder of the ControlNet; None is the one that the pipeline has for this kind."""
    weight: float = 1.0
    """Its strength; 0 leaves it off."""
    start: Share = 0.0
    """It works from this share of the steps on."""
    end: Share = 1.0
    """And up to this one."""

    @model_validator(mode="after")
    def _check(self) -> "ControlChoice":
        if self.start >= self.end:
            raise InputError(
                f"a control starts before it ends, got start {self.start:g} and end {self.end:g}"
            )
        return self


class Region(BaseModel):
    """A part of the picture with a text of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    prompt: str = Field(max_length=100_000)
    box: Annotated[tuple[Share, Share, Share, Share] | None, Field(strict=False)] = None
    """left, top, right, bottom, as shares of width and height from the top left corner."""
    mask: str | None = Field(default=None, min_length=1, repr=False)
    """In place of a box a picture, scaled to the drawing: white has this text, black the others."""
    soft: Share = 0.1
    """How wide the edge of a box is, as a share of the side."""

    @model_validator(mode="after")
    def _check(self) -> "Region":
        if (self.box is None) == (self.mask is None):
            raise InputError("a region has a box or a mask, one of them")
        if self.box and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise InputError(f"a box is left, top, right, bottom, got {self.box}")
        return self


class GenerationRequest(BaseModel):
    """One prompt and how to draw it, plain data; the names are those of the diffusers call."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    prompt: str = Field(max_length=100_000)
    negative_prompt: str = Field(default="", max_length=100_000)
    """What the picture should lead away from; empty is the unconditional text."""
    width: Side | None = None
    """In pixels, a multiple of 16; None for both sides is the model's native size."""
    height: Side | None = None
    num_inference_steps: int = Field(default=20, ge=1, le=1000)
    guidance_scale: float | None = Field(default=None, ge=0, le=LARGEST_SCALE)
    """How strongly the text leads; 1 or less draws without guidance, in half the time. None is what
    suits the model: 4.5 for the published ones."""
    sampler: str = Field(default="dpm++2m", min_length=1)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    """Of the first picture; the following ones count up. None draws one."""
    num_images: int = Field(default=1, ge=1, le=1000)
    clean_caption: bool | None = None
    """Whether to clean and lower-case the prompts first; None does what the model was trained on:
    PixArt-α with, Σ without."""
    null_caption: Literal["own", "prompt"] = "own"
    """Whose mask the empty negative prompt has: its own, as in diffusers, or that of the prompt,
    as in the authors' code."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """Share of fresh noise in a DDIM step."""
    loras: tuple[LoraChoice, ...] = Field(default=(), strict=False, max_length=100)
    """Adapters for this request alone, on top of the pipeline's own."""

    image: str | None = Field(default=None, min_length=1, repr=False)
    """A picture to begin from: a path, or the picture as `data:image/png;base64,…`. With one,
    `width` and `height` are what it is scaled and cut to, of any value; None keeps its size."""
    mask: str | None = Field(default=None, min_length=1, repr=False)
    """What to draw anew, white on black, in the size of the picture; grey mixes the two."""
    strength: float | None = Field(default=None, ge=0, le=1)
    """Share of the steps that are taken from the picture on: 0 gives it back, 1 begins with noise.
    None is 0.6 for a picture, 1 under a mask, 0.4 in the second pass and 0.2 in tiles."""
    extend: dict[Literal["left", "right", "top", "bottom"], Extension] | None = None
    """Pixels of new canvas on each side of the picture."""
    inpaint_crop: bool = False
    """Work on a part around the mask, of the model's native size or more, in full resolution."""
    two_pass: bool = False
    """Draw in the size the model was trained on, then enlarge and refine."""
    control: Annotated[tuple[ControlChoice, ...], Field(strict=False, max_length=20)] = ()
    """Hints that the picture follows; what they add is summed."""
    tiled: bool = False
    """Refine (the second pass, or a picture) in overlapping tiles of the trained size."""
    fast: bool | FastOptions = False
    """Whether to leave out what costs much and changes little; true is the preset."""
    guidance: GuidanceOptions = GuidanceOptions()
    """How the text leads besides its scale."""
    prompt_syntax: Literal["plain", "weighted"] = "plain"
    """Whether brackets in the prompts are words, or the language of docs/steering.md."""
    long_prompts: Literal["truncate", "chunk", "refuse"] = "truncate"
    """What becomes of tokens beyond the model's limit: cut with a warning, read in turns, or an
    error."""
    regions: Annotated[tuple[Region, ...], Field(strict=False, max_length=20)] = ()
    """Parts with texts of their own; the prompt holds elsewhere. Where they overlap they share."""
    style: str | Style | None = None
    """What is put around the prompts: the name of one of ours, or a style itself."""

    @field_validator("style", mode="before")
    @classmethod
    def _read_style(cls, value: Any) -> Any:
        # here, as a union would tell of both its members
        return style_from(value, "the style") if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check(self) -> "GenerationRequest":
        if (self.width is None) != (self.height is None):
            raise InputError("give both width and height, or neither for the model's native size")
        self._check_pictures()
        if self.width is not None and self.height is not None and self.image is None:
            check_size(self.width, self.height)
        if self.null_caption == "prompt" and self.negative_prompt:
            raise InputError(
                "null_caption='prompt' is for the empty negative prompt; "
                f"got {self.negative_prompt!r} beside it"
            )
        if self.seed is not None and self.seed + self.num_images - 1 > LARGEST_SEED:
            raise InputError(
                f"{self.num_images} pictures count the seed beyond {LARGEST_SEED}, got {self.seed}"
            )
        self._check_steering()
        return self

    def _check_pictures(self) -> None:
        if self.image is None:
            needy = [f for f in ("mask", "extend", "inpaint_crop") if getattr(self, f)]
            if needy:
                raise InputError(f"{needy[0]} needs a picture: give image (--image)")
            if self.strength is not None and not self.two_pass:
                raise InputError(
                    "strength needs image or two_pass (--image, --two-pass): there is nothing to "
                    "begin from"
                )
        elif self.two_pass:
            raise InputError("two_pass draws from text alone: give image or two_pass, not both")
        begins = self.image is not None or self.two_pass
        masked = self.mask is not None or self.extend is not None
        if self.tiled and (not begins or (self.strength == 1 and not masked)):
            raise InputError(
                "tiled refines what is there: give image or two_pass (--image, --two-pass), and a "
                "strength below 1; from noise alone every tile would draw the whole prompt"
            )
        if self.tiled and any(control.kind != PICTURE for control in self.control):
            raise InputError("a hint is for the whole picture: leave out control, or tiled")
        if self.tiled and self.fast:
            raise InputError("fast compares a tile with the one before: leave out fast, or tiled")
        if self.inpaint_crop and not (self.mask or self.extend):
            raise InputError("inpaint_crop works around a mask: give mask or extend")
        if self.extend is not None and not any(self.extend.values()):
            raise InputError("extend needs pixels on one side at least, such as left=256")

    def _check_steering(self) -> None:
        self._style()
        if self.null_caption == "prompt" and (
            self.prompt_syntax != "plain" or self.long_prompts == "chunk" or self.styled_negative
        ):
            raise InputError(
                "null_caption='prompt' has the mask of one plain prompt: leave out prompt_syntax, "
                "long_prompts='chunk' and styles with a negative part"
            )
        if self.regions and self.guidance.disturbs:
            raise InputError("PAG and SEG disturb one text: leave them out, or regions")
        if self.prompt_syntax == "plain":
            return
        if any(len(parse(region.prompt)) > 1 for region in self.regions):
            raise InputError("AND is for the prompt; write the text of a region as one")
        clauses = parse(self.styled_prompt)
        if len(parse(self.styled_negative)) > 1:
            raise InputError("AND is for the prompt; write the negative prompt as one text")
        if len(clauses) > 1 and self.guidance.disturbs:
            raise InputError("PAG and SEG disturb one text: leave them out, or AND")

    @property
    def shortcuts(self) -> FastOptions | None:
        """What may be left out."""
        if isinstance(self.fast, FastOptions):
            return self.fast
        return FAST if self.fast else None

    @property
    def styled_prompt(self) -> str:
        """The prompt in its style; each of the texts that AND joins has it."""
        style = self._style()
        if style is None:
            return self.prompt
        if self.prompt_syntax == "plain":
            return style.around(self.prompt)
        clauses = []
        for clause in parse(self.prompt):
            inside, *others = parse(style.around(written(clause.parts)))
            if others:
                raise InputError(f"a style surrounds one text and has no AND, got {style.prompt!r}")
            clauses.append(Clause(inside.parts, clause.weight))
        return unparse(tuple(clauses))

    @property
    def styled_negative(self) -> str:
        """The negative prompt with that of the style."""
        style = self._style()
        return style.without(self.negative_prompt) if style else self.negative_prompt

    def _style(self) -> Style | None:
        return style_named(self.style) if isinstance(self.style, str) else self.style


def request_from(names: Mapping[str, str] | None = None, /, **settings: Any) -> GenerationRequest:
    """Check the settings; raises InputError (SizeError for a size) with one clear message.

    `names` maps a field to what the person knows it by, such as a flag of the command line.
    """
    try:
        return GenerationRequest.model_validate(settings)
    except ValidationError as error:
        raise input_error(error, names) from error


def input_error(error: ValidationError, names: Mapping[str, str] | None = None) -> InputError:
    """The first complaint of pydantic as one of our errors."""
    first = error.errors(include_url=False)[0]
    ours = first.get("ctx", {}).get("error")
    if isinstance(ours, InputError):
        return ours
    field, *inner = (str(part) for part in first["loc"] or ["the request"] if part != "[key]")
    joint = " " if field == "guidance" else "."  # as --guide has its settings
    name = joint.join([(names or {}).get(field, field), *inner])
    if first["type"] == "extra_forbidden" and (not inner or field == "guidance"):
        known = GuidanceOptions if inner else GenerationRequest
        unknown = joint.join([field, *inner])
        return InputError(
            f"there is no setting {unknown!r}; known: {', '.join(known.model_fields)}"
        )
    if first["type"] == "missing":
        return InputError(f"{name} is missing")
    rule = first["msg"].replace("Input should", "must").replace("String should", "must")
    return InputError(f"{name} {rule}, got {_shown(first['input'])}")


def parse_prompt_file(
    path: Path, defaults: Mapping[str, Any] | None = None, names: Mapping[str, str] | None = None
) -> list[GenerationRequest]:
    """One request a line: a prompt, or a JSON object with `prompt` and settings of its own.

    `defaults` hold for what a line does not set; blank lines are skipped. Raises PromptFileError
    that names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptFileError(f"cannot read the prompts in {path}: {error.strerror}") from error
    requests = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            requests.append(request_from(names, **{**(defaults or {}), **_parse_line(raw)}))
        except (PixsigmaError, ValueError, RecursionError) as error:
            raise PromptFileError(f"line {number} of {path}: {error}") from error
    if not requests:
        raise PromptFileError(f"{path} holds no prompt; write one a line")
    return requests


def _parse_line(raw: bytes) -> dict[str, Any]:
    text = raw.decode("utf-8").strip()
    if not text.startswith("{"):
        return {"prompt": text}
    try:
        settings: dict[str, Any] = json.loads(text, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        raise InputError(
            f"a line that begins with {{ must be a JSON object: {error.msg} at column {error.colno}"
        ) from error
    if "prompt" not in settings:
        raise InputError("the JSON object needs a prompt")
    return settings


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    settings = dict(pairs)
    if len(settings) < len(pairs):
        raise InputError("a setting stands twice in the JSON object")
    return settings


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
