"""What the README shows must run."""

import ast
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

from house.sources import ROOT, fenced, readme
from pixsigma.cli import COMMANDS, app
from pixsigma.images import read_settings

DOCUMENTS = ["README.md", "CONTRIBUTING.md"]


def calls(text: str) -> list[list[str]]:
    """The commands in the shell blocks of a text, without the folder of their program."""
    lines = "".join(fenced(text, "sh", "bash", "shell")).replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [[Path(call[0]).name, *call[1:]] for call in words if call]


def commands(text: str) -> list[list[str]]:
    """The calls of `pixsigma` among them."""
    return [call[1:] for call in calls(text) if call[0] == "pixsigma"]


def test_every_command_that_is_shown_exists() -> None:
    shown = commands(readme()) + commands((ROOT / "docs" / "editing.md").read_text("utf-8"))
    assert shown, "the README shows how to draw a picture"
    group = typer.main.get_command(app)
    with group.make_context("pixsigma", ["models"]) as context:
        for name, *arguments in shown:
            assert name in COMMANDS
            command = group.get_command(context, name)  # type: ignore[attr-defined]
            # parses, and so refuses flags that are not there; runs nothing
            command.make_context(name, arguments)


def test_the_first_command_draws_a_picture_with_the_model_inside(tmp_path: Path) -> None:
    name, *arguments = commands(readme())[0]
    assert name == "generate" and "--model" not in arguments
    subprocess.run(
        [sys.executable, "-m", "pixsigma", name, *arguments], cwd=tmp_path, check=True, timeout=120
    )
    (picture,) = tmp_path.rglob("*.png")
    assert read_settings(picture)["model"] == "mini"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_snippets_import_what_is_there(document: str) -> None:
    for code in fenced((ROOT / document).read_text("utf-8"), "python", "py"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pixsigma"):
                for alias in node.names:
                    assert hasattr(import_module(node.module or ""), alias.name)


def test_the_automatic_check_runs_the_command_for_tests_that_is_shown() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    last = shlex.split(script.strip().splitlines()[-1])
    assert last[0] == "pytest"
    for document in DOCUMENTS:
        assert last in calls((ROOT / document).read_text("utf-8"))
    assert "-c constraints.txt '.[dev]'" in script


def test_links_to_files_lead_somewhere() -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text("utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in target:
                assert (ROOT / target).exists(), f"{document} links to {target}"
