"""At many tokens attention never has all of its weights at once; and what measures such sizes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

SIDE = 128
"""Tokens a side: 16,384 of them, whose weights would take 1.07 GB."""

MEASURED = """
import torch
from pathlib import Path
from pixsigma.models.autoencoder_blocks import SpatialAttention
from pixsigma.models.blocks import SelfAttention

def told(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def peak(call):
    before = told("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with torch.no_grad():
        assert torch.isfinite(call()).all()
    return told("VmHWM") - before

tokens = torch.randn(1, SIDE * SIDE, 72)
plain, compressed = (SelfAttention(72, 1, False, ratio) for ratio in (1, 2))
spatial = SpatialAttention(32, 8)
print([
    peak(lambda: plain(tokens, (SIDE, SIDE))),
    peak(lambda: compressed(tokens, (SIDE, SIDE))),
    peak(lambda: spatial(torch.randn(1, 32, SIDE, SIDE))),
])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are told by Linux")
def test_attention_never_has_all_weights_at_once() -> None:
    code = f"SIDE = {SIDE}\n{MEASURED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    weights = 4 * SIDE**4
    assert all(peak < weights / 4 for peak in json.loads(done.stdout)), done.stdout


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script `benchmarks/sizes.py`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("sizes", None)
    import sizes as script

    return script


def test_the_law_is_found(sizes: ModuleType) -> None:
    rows = [{"tokens": n, "seconds": 2e-3 * n + 3e-7 * n**2} for n in (256, 4096, 65536)]
    assert sizes.law(rows) == pytest.approx([2e-3, 3e-7])


def test_a_step_goes_on_where_it_was_left(sizes: ModuleType, tmp_path: Path) -> None:
    import torch

    args = SimpleNamespace(state=tmp_path, blocks=2)
    step = sizes.Step(args, "32x32", compressed=False)
    assert step.todo(2) == [0, 1] and step.todo(14) == list(range(28))
    assert sizes.Step(args, "32x32", compressed=True).todo(2) == [14, 15]
    first = step.begun(lambda: (torch.ones(1), None))
    step.timed(0, lambda: None)
    step.save(peak=7)
    torch.save(first + 1, step.kept)
    again = sizes.Step(args, "32x32", compressed=False)
    assert again.todo(2) == [1] and again.peak == 7
    assert again.begun(lambda: pytest.fail("begun anew")) == 2
    step.kept.unlink()  # the tokens are lost: what was timed is of another step
    assert sizes.Step(args, "32x32", compressed=False).begun(lambda: (first, None)) == 1


def test_a_step_runs_block_by_block_to_its_end(
    sizes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    small = {"num_attention_heads": 1, "attention_head_dim": 16}
    whole = sizes.random_transformer
    monkeypatch.setattr(sizes, "random_transformer", lambda c: whole(replace(c, **small)))
    flags = ["sizes.py", "--only", "256x256", "--out", str(tmp_path), "--minutes"]
    monkeypatch.setattr(sys, "argv", [*flags, "0"])
    sizes.main()
    assert not list(tmp_path.glob("sizes/*.json")), "no block begins after the minutes"
    monkeypatch.setattr(sys, "argv", [*flags, "5"])
    sizes.main()
    told = capsys.readouterr().out
    assert told.count("the whole step") == 2 and "scaled" not in told
    rows = json.loads((tmp_path / "sizes.json").read_text())["rows"]
    assert [row["compressed"] for row in rows] == [False, True]
    assert not list(tmp_path.glob("sizes/*.pt")), "tokens of steps that are done"


def test_a_table_says_what_is_scaled(sizes: ModuleType, tmp_path: Path) -> None:
    args = SimpleNamespace(state=tmp_path, out=tmp_path, blocks=1)
    for compressed in (False, True):
        step = sizes.Step(args, "256x256", compressed)
        known = ("enter", 1), (14, 1) if compressed else (0, 2), ("leave", 1)
        step.seconds = {str(name): seconds for name, seconds in known}
        step.save(peak=10**9)
    plain, fewer = sizes.rows_of(args)
    assert (plain["seconds"], fewer["seconds"]) == (58, 44)
    assert plain["tokens"] == 256 and plain["blocks_run"] == 1
    plain["gain"] = fewer["gain"] = 1 - 44 / 58
    assert "scaled" in str(sizes.line(plain)["from"])
    # small steps may live in memory that was given back before: nothing above the weights
    sizes.plot(tmp_path / "sizes.png", {"plain": [plain | {"peak_bytes": 0}]}, {})
    assert (tmp_path / "sizes.png").is_file()
