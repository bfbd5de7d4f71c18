"""The scripts under benchmarks/: each can be run, says what it does, refuses what it has not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path for path in (ROOT / "benchmarks").glob("*.py") if '"__main__"' in path.read_text("utf-8")
)


def run(script: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(script), *flags],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )


def test_there_are_scripts() -> None:
    assert {"step", "startup", "fast", "memory", "train_step"} <= {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_tells_its_flags(script: Path) -> None:
    told = run(script, "--help")
    assert told.returncode == 0, told.stderr
    assert "usage:" in told.stdout and "--help" in told.stdout
    wrong = run(script, "--no-such-flag")
    assert wrong.returncode == 2 and "usage:" in wrong.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_begins_with_how_to_run_it(script: Path) -> None:
    text = script.read_text("utf-8")
    assert re.search(rf"python benchmarks/{script.name}", text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_map_or_the_docs_name_every_script(script: Path) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(script.name in page.read_text("utf-8") for page in pages)
