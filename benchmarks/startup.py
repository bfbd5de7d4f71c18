"""Start-up: a cold `pixsigma generate` with mini, and a folder to its first step beside diffusers.

    python benchmarks/startup.py [--model FOLDER] [--quick]

Every round is a process of its own, ours and theirs in turns, and tells its own peak of memory.
The files are in the page cache after the first round; the first is not counted.
"""

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from common import parser

from pixsigma.measuring import Timing, bars, columns, interleaved, write_report
from pixsigma.weights.build import resolve

GENERATE = """
import sys, time
began = time.perf_counter()
sys.argv = ["pixsigma", "generate", "a red apple", "--seed", "1", "--quiet", "--out", OUT]
try:
    from pixsigma.__main__ import main
    main()
except SystemExit as left:
    assert not left.code, left.code
"""

OURS = """
import time
began = time.perf_counter()
import torch
from pixsigma import PixArtSigmaPipeline
pipe = PixArtSigmaPipeline.from_pretrained(FOLDER, text_encoder=None)
loaded = time.perf_counter() - began
text = torch.randn(1, 8, pipe.transformer_config.caption_channels)
mask = torch.ones(1, 8)
pipe(prompt_embeds=text, prompt_attention_mask=mask, negative_prompt_embeds=text,
     negative_prompt_attention_mask=mask, num_inference_steps=1, output_type="latent",
     height=SIDE, width=SIDE, use_resolution_binning=False)
"""

THEIRS = """
import time
began = time.perf_counter()
import torch
from diffusers import PixArtSigmaPipeline
pipe = PixArtSigmaPipeline.from_pretrained(
    FOLDER, text_encoder=None, tokenizer=None, torch_dtype=torch.float32
)
pipe.set_progress_bar_config(disable=True)
loaded = time.perf_counter() - began
text = torch.randn(1, 300, pipe.transformer.config.caption_channels)
mask = torch.ones(1, 300)
pipe(None, None, prompt_embeds=text, prompt_attention_mask=mask, negative_prompt_embeds=text,
     negative_prompt_attention_mask=mask, num_inference_steps=1, output_type="latent",
     height=SIDE, width=SIDE, use_resolution_binning=False, guidance_scale=4.5)
"""

TOLD = """
import json
lines = open("/proc/self/status").read().splitlines()
# not ru_maxrss, which begins with the peak of the process that started this one
(peak,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
print(json.dumps({"seconds": time.perf_counter() - began, "peak_bytes": peak,
                  "loaded": globals().get("loaded")}))
"""


def flags() -> Namespace:
    found = parser(__doc__ or "", rounds=5)
    found.add_argument("--model", default="mini", help="mini or a folder in diffusers layout")
    found.add_argument("--side", type=int, default=64, help="of the first step, in pixels")
    args = found.parse_args()
    args.rounds = 1 if args.quick else args.rounds
    return args


def run(code: str, values: dict[str, object], peaks: list[int]) -> None:
    """One process; what it says of its peak is kept."""
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    script = "\n".join([*lines, code, TOLD])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    peaks.append(json.loads(done.stdout.strip().splitlines()[-1])["peak_bytes"])


def main() -> None:
    args = flags()
    values = {"FOLDER": str(resolve(args.model)), "SIDE": args.side}
    scripts = {
        "pixsigma generate, mini": GENERATE,
        "ours, folder to first step": OURS,
        "diffusers, folder to first step": THEIRS,
    }
    peaks: dict[str, list[int]] = {name: [] for name in scripts}
    with tempfile.TemporaryDirectory() as out:
        values["OUT"] = str(Path(out))
        calls = {name: partial(run, code, values, peaks[name]) for name, code in scripts.items()}
        times = interleaved(calls, args.rounds, warm=0 if args.quick else 1)
    rows = {
        name: timing.told() | {"peak_bytes": max(peaks[name])} for name, timing in times.items()
    }
    write_report(args.out / "startup.json", {"model": args.model, "rows": rows})
    groups: dict[str, dict[str, Timing]] = {"process start to end": times}
    bars(args.out / "startup.png", groups, title=f"Start-up, {args.model}", label="seconds")
    print(columns([line(name, row) for name, row in rows.items()]))


def line(name: str, row: dict[str, Any]) -> dict[str, object]:
    return {
        "what": name,
        "seconds": row["median"],
        "quartiles": f"{row['low']:.2f} to {row['high']:.2f}",
        "peak": f"{row['peak_bytes'] / 2**20:.0f} MiB",
    }


if __name__ == "__main__":
    main()
