"""A whole process in little memory: T5-XXL, XL/2 and the SDXL autoencoder, prompt to PNG on a CPU.

    python benchmarks/whole.py --folder BIG                     # 1024px in 4 GB, one step
    python benchmarks/whole.py --folder BIG --theirs float32    # diffusers, if it has the memory

Weights are random, in the published shapes (T5 and transformer fp16, autoencoder fp32 on disk:
11 GB, written once). `peak` is VmHWM: what the process has of its own and the pages of mapped
files that it has touched and not given back; `own` is the largest RssAnon seen. Diffusers may take
what is free but for 2 GB (RLIMIT_DATA), so that it fails alone; it is told how.
"""

import json
import resource
import subprocess
import sys
import time
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path
from typing import Any

import psutil
import torch
from common import parser, random_transformer, watched, write_t5

from pixsigma.config import AutoencoderConfig, TransformerConfig
from pixsigma.measuring import columns, write_report

THEIRS = """
import torch
from diffusers import PixArtSigmaPipeline
pipe = PixArtSigmaPipeline.from_pretrained(FOLDER, torch_dtype=torch.DTYPE)
print("loaded", flush=True)
pipe("a red apple on a table", num_inference_steps=STEPS, height=SIDE, width=SIDE,
     use_resolution_binning=False)
"""


def flags() -> Namespace:
    found = parser(__doc__ or "")
    found.add_argument("--folder", type=Path, required=True, help="where the model is, or goes")
    found.add_argument("--side", type=int, default=1024)
    found.add_argument("--steps", type=int, default=1)
    found.add_argument("--memory", default="4GB")
    found.add_argument("--ours", action=BooleanOptionalAction, default=True)
    found.add_argument("--theirs", nargs="*", default=[], help="precisions to try diffusers in")
    found.add_argument("--layers", type=int, default=24, help="of T5; fewer to try the script")
    args = found.parse_args()
    args.side = 256 if args.quick else args.side
    return args


def main() -> None:
    args = flags()
    model = write_model(args.folder, args.layers)
    file = args.out / "whole.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows += [ours(args, model)] if args.ours else []
    rows += [theirs(args, model, name) for name in args.theirs]
    write_report(file, {"rows": rows})
    print(columns([line(row) for row in rows]))


def write_model(folder: Path, layers: int) -> Path:
    """A model's folder, unless it is there; text encoder and tokenizer are links."""
    from pixsigma.models.autoencoder import KLAutoencoder
    from pixsigma.weights.folder import save_autoencoder, save_folder

    write_t5(folder / "float16", layers)
    model = folder / "model"
    if (model / "model_index.json").is_file() and (model / "vae" / "config.json").is_file():
        return model
    torch.manual_seed(0)
    save_folder(model, transformer=random_transformer(TransformerConfig()).half())
    save_autoencoder(KLAutoencoder(AutoencoderConfig()), model / "vae")
    for part in ("text_encoder", "tokenizer"):
        (model / part).symlink_to((folder / "float16" / part).resolve())
    index = (model / "model_index.json").read_text()
    for part, kind in (
        ("text_encoder", '["transformers", "T5EncoderModel"]'),
        ("tokenizer", '["transformers", "T5Tokenizer"]'),
        ("vae", '["diffusers", "AutoencoderKL"]'),
    ):
        index = index.replace(f'"{part}": [\n    null,\n    null\n  ]', f'"{part}": {kind}')
    (model / "model_index.json").write_text(index)
    return model


def ours(args: Namespace, model: Path) -> dict[str, Any]:
    """`pixsigma generate --memory`."""
    png = args.out / "whole-drawn"
    command = [
        sys.executable, "-m", "pixsigma", "generate", "a red apple on a table",
        "--model", str(model), "--size", f"{args.side}x{args.side}", "--steps", str(args.steps),
        "--memory", args.memory, "--prompt-cache", "off", "--seed", "1", "--out", str(png),
    ]  # fmt: skip
    return run(args, f"pixsigma --memory {args.memory}", command)


def theirs(args: Namespace, model: Path, dtype: str) -> dict[str, Any]:
    """diffusers' pipeline with the same files."""
    code = THEIRS.replace("FOLDER", repr(str(model))).replace("DTYPE", dtype)
    code = code.replace("STEPS", str(args.steps)).replace("SIDE", str(args.side))
    return run(
        args, f"diffusers {dtype}", [sys.executable, "-W", "ignore", "-c", code], limited=True
    )


def run(args: Namespace, name: str, command: list[str], limited: bool = False) -> dict[str, Any]:
    """A process to its end: its peaks, its time, and the last line of an error."""
    room = psutil.virtual_memory().available - 2 * 10**9

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (room, room))

    began = time.perf_counter()
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=limit if limited else None,
    ) as process:  # fmt: skip
        peaks = watched(process)
        told = process.stderr.read().strip().splitlines() if process.stderr else []
    return {
        "what": name,
        "side": args.side,
        "steps": args.steps,
        "seconds": time.perf_counter() - began,
        "peak_bytes": peaks.all,
        "own_bytes": peaks.own,
        "allowed_bytes": room if limited else None,
        "error": told[-1] if process.returncode and told else None,
    }


def line(row: dict[str, Any]) -> dict[str, object]:
    return {
        "what": row["what"],
        "side": row["side"],
        "seconds": row["seconds"],
        "peak GB": row["peak_bytes"] / 1e9,
        "own GB": row["own_bytes"] / 1e9,
        "end": (row["error"] or "a picture")[:90],
    }


if __name__ == "__main__":
    main()
