"""Styles: ours, and those that people add."""

from pathlib import Path

import pytest

from pixsigma.errors import InputError
from pixsigma.prompts.parse import parse
from pixsigma.prompts.tree import Clause, Text
from pixsigma.requests import request_from
from pixsigma.styles import Style, read_styles, style_named, styles


def test_ours_are_a_dozen_that_surround_a_prompt() -> None:
    assert len(styles()) >= 12
    for name, style in styles().items():
        around = style.around("a cat")
        assert "a cat" in around and around != "a cat", name
        # they say the same in both syntaxes
        assert parse(around) == (Clause((Text(around),)),)
        assert parse(style.negative_prompt)[0].parts


def test_a_style_goes_around_the_prompt_and_behind_the_negative_one() -> None:
    ink = style_named("ink")
    request = request_from(prompt="a {cat}", negative_prompt="fog", style="ink")
    assert request.styled_prompt == ink.prompt.replace("{prompt}", "a {cat}")
    assert request.styled_negative == f"fog, {ink.negative_prompt}"
    assert request_from(prompt="a", style="ink").styled_negative == ink.negative_prompt
    assert request_from(prompt="a (cat").styled_prompt == "a (cat"


def test_each_of_the_texts_that_and_joins_has_the_style() -> None:
    style = {"prompt": "(ink:1.2) of {prompt}, bold"}
    request = request_from(
        prompt="a [cat|dog] AND:0.5 \\(b\\)", prompt_syntax="weighted", style=style
    )
    expected = parse("(ink:1.2) of a [cat|dog], bold AND:0.5 (ink:1.2) of \\(b\\), bold")
    assert parse(request.styled_prompt) == expected
    with pytest.raises(InputError, match="has no AND"):
        request_from(prompt="a", prompt_syntax="weighted", style={"prompt": "{prompt} AND b"})


def write(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text, "utf-8")
    return path


def test_people_add_their_own(tmp_path: Path) -> None:
    own = read_styles(write(tmp_path, '[ink]\nprompt = "my {prompt}"\n[b]\nprompt = "{prompt}"\n'))
    assert own["ink"] == Style(prompt="my {prompt}")
    assert style_named("ink", own) == own["ink"] != style_named("ink")
    assert request_from(prompt="x", style=own["ink"]).styled_prompt == "my x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "own.toml is no TOML"),
        ("", "holds no style"),
        ('[a]\nprompt = "x"', r"the style a in .*own.toml \(prompt\): .*exactly once"),
        (
            '[a]\nprompt = "{prompt}"\nnegative = "x"',
            r"the style a in .*\(negative\): .*not permitted",
        ),
        ("a = 3", "the style a in .*own.toml"),
    ],
)
def test_bad_files_are_told_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_styles(write(tmp_path, text))


def test_missing_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the styles in"):
        read_styles(tmp_path / "none.toml")
    with pytest.raises(InputError, match="no style 'inc': did you mean ink"):
        style_named("inc")
