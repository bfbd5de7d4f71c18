"""The scripts under benchmarks/: each can be run, says what it does, refuses what it has not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    flags = set(re.findall(r"^ +(?:-\w, )?--([\w-]+)", told.stdout, re.MULTILINE)) - {"help"}
    used = re.findall(r"\.(\w+)\b", script.read_text("utf-8"))
    assert {flag.replace("-", "_") for flag in flags} <= {*used}, "a flag that does nothing"
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


@pytest.mark.parametrize(
    ("name", "flags", "told"),
    [
        ("memory", [], "--quick, --full or --t5"),
        ("memory", ["--quick", "--only", "99"], "nothing to measure"),
        ("mixed_batch", ["--lists", "alike,odd"], "odd"),
        ("sizes", ["--only", "320x320"], "320x320"),
        ("decoding", ["--ways", "slices"], "slices"),
        ("step", ["--rounds", "0"], "above 0"),
    ],
)
def test_what_measures_nothing_is_told(name: str, flags: list[str], told: str) -> None:
    found = run(ROOT / "benchmarks" / f"{name}.py", *flags)
    assert found.returncode == 2 and told in found.stderr, found.stderr


def test_numbers_are_listed_without_weights_being_written(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "memory.py"
    told = run(script, "--quick", "--t5", str(tmp_path / "big"), "--list")
    assert told.returncode == 0 and "t5 int8" in told.stdout, told.stderr
    assert not (tmp_path / "big").exists()


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts lie beside each other, as they are run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_a_process_tells_its_own_peak(beside: None) -> None:
    import startup

    # a block that the peak of this process has, and that of the one it starts must not
    torch.ones(2**27)
    peaks: list[int] = []
    startup.run("import time\nbegan = time.perf_counter()", {}, peaks)
    assert peaks[0] < 2**27


def test_what_fails_at_once_is_not_served(beside: None) -> None:
    import serve_load

    rows = [serve_load.Row(k, 0, 0.0, 2.0, "done", b"") for k in range(2)]
    rows += [serve_load.Row(k, 0, 0.0, 0.01, "no answer", b"") for k in range(30)]
    told = serve_load.told(rows, [(1.0, 100.0)], seconds=4.0)
    assert told["jobs_a_second"] == 0.5 and told["p50_seconds"] == 2.0
    assert told["jobs"] == 32 and told["not_done"] == ["no answer"]
    nothing = serve_load.told(rows[2:], [(1.0, 100.0)], seconds=4.0)
    assert nothing["jobs_a_second"] == 0 and nothing["not_done"] == ["no answer"]


def test_a_quick_run_leaves_what_was_gathered(
    beside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train_step

    gathered = tmp_path / "train_step.json"
    gathered.write_text("{}")
    monkeypatch.setattr(train_step, "busy", lambda size, steps: {"busy": 0.5})
    flags = ["--quick", "--part", "busy", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train_step.py", *flags])
    train_step.main()
    assert gathered.read_text() == "{}"
    assert "busy" in (tmp_path / "train_step-quick.json").read_text()
