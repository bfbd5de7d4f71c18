"""What may be drawn: hooks before and after drawing, off unless asked for."""

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pixsigma.errors import InputError, PolicyError
from pixsigma.prompting import lines_of
from pixsigma.requests import GenerationRequest

Before: TypeAlias = Callable[[GenerationRequest], str | None]
"""A reason to refuse the request, or None."""

After: TypeAlias = Callable[[Image], str | None]
"""A reason to throw the picture away, or None."""


@dataclass(frozen=True)
class Policy:
    """The hooks, asked in order; the first reason counts."""

    before: Sequence[Before] = field(default=())
    after: Sequence[After] = field(default=())

    def check_request(self, request: GenerationRequest) -> None:
        """Raise PolicyError where a hook says why not."""
        for hook in self.before:
            if reason := hook(request):
                raise PolicyError(f"this server does not draw that: {reason}")

    def check_picture(self, image: Image) -> None:
        """Raise PolicyError where a hook says why not."""
        for hook in self.after:
            if reason := hook(image):
                raise PolicyError(f"the picture was not kept: {reason}")


class Rule(BaseModel):
    """One line of a rules file: words, or a regular expression, and why they are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    words: tuple[str, ...] = Field(default=(), strict=False)
    """Whole words or phrases, in any case."""
    pattern: str | None = None
    """A regular expression in place of words, in any case."""
    reason: str = Field(min_length=1)

    @field_validator("pattern")
    @classmethod
    def _check(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"{pattern!r} is no regular expression: {error}") from error
        return pattern

    def expression(self) -> re.Pattern[str]:
        """What a prompt is searched for."""
        parts = [rf"(?<!\w){re.escape(word)}(?!\w)" for word in self.words]
        parts += [f"(?:{self.pattern})"] if self.pattern else []
        if not parts:
            raise InputError("a rule needs words or a pattern")
        return re.compile("|".join(parts), re.IGNORECASE)


def read_rules(path: Path) -> Before:
    """A TOML file of `[[refuse]]` tables as a hook; raises InputError that names the rule."""
    try:
        tables = tomllib.loads(path.read_text("utf-8")).get("refuse", [])
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the rules in {path}: {error}") from error
    if not isinstance(tables, list) or not tables:
        raise InputError(f"{path} holds no rule; write [[refuse]], words = […] and reason = …")
    found = []
    for number, table in enumerate(tables, start=1):
        try:
            rule = Rule.model_validate(table)
            found.append((rule.expression(), rule.reason))
        except (ValidationError, InputError) as error:
            told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise InputError(f"rule {number} in {path}: {told}") from error

    def refused(request: GenerationRequest) -> str | None:
        texts = sorted(texts_of(request))
        return next((why for rule, why in found if any(map(rule.search, texts))), None)

    return refused


def texts_of(request: GenerationRequest) -> set[str]:
    """Every text that a picture is drawn from, as it was written and as each step reads it.

    Brackets of the prompt language may take a word apart. Raises InputError for what is not in it.
    """
    texts = {request.styled_prompt, *(region.prompt for region in request.regions)}
    # more steps than any sampler makes of them, so that no schedule ends unseen
    steps = max(100, 2 * request.num_inference_steps)
    rows = [row for text in texts for row in lines_of(text, request.prompt_syntax, steps)]
    return texts | {line.text for row in rows for line in row}
