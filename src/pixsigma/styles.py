"""Named styles: what is put around a prompt, and what is added to the negative one."""

import tomllib
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pixsigma.errors import InputError, UnknownNameError

PLACE = "{prompt}"
"""Where the prompt goes."""


class Style(BaseModel):
    """A template with exactly one `{prompt}`, else pydantic raises ValidationError; `style_from`
    tells it as InputError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str
    """Such as "an ink drawing of {prompt}"."""
    negative_prompt: str = ""

    @field_validator("prompt")
    @classmethod
    def _check(cls, prompt: str) -> str:
        if prompt.count(PLACE) != 1:
            raise InputError(f"the prompt of a style has {PLACE} exactly once, got {prompt!r}")
        return prompt

    def around(self, prompt: str) -> str:
        """The prompt in its place."""
        return self.prompt.replace(PLACE, prompt)

    def without(self, negative_prompt: str) -> str:
        """The negative prompt and the style's, joined by a comma."""
        return ", ".join(part for part in (negative_prompt, self.negative_prompt) if part)


@cache
def styles() -> dict[str, Style]:
    """The styles of this package by name."""
    return read_styles(Path(__file__).with_name("styles.toml"))


def read_styles(path: Path) -> dict[str, Style]:
    """The styles in a TOML file, a table each; raises InputError that names file and style."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the styles in {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    found = {
        name: style_from(table, f"the style {name} in {path}") for name, table in tables.items()
    }
    if not found:
        raise InputError(f"{path} holds no style; write one as a table, [name] and prompt = …")
    return found


def style_from(table: object, what: str) -> Style:
    """A style of plain data; raises InputError that calls it `what`."""
    try:
        return Style.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        ours = first.get("ctx", {}).get("error")
        field = f" ({first['loc'][0]})" if first["loc"] else ""
        raise InputError(f"{what}{field}: {ours or first['msg']}") from error


def style_named(name: str, own: dict[str, Style] | None = None) -> Style:
    """The style of this name, `own` ones first; UnknownNameError tells the nearest."""
    known = styles() | (own or {})
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UnknownNameError(f"there is no style {name!r}: {hint}known are {', '.join(known)}")
