"""Pictures decoded and encoded in strips beside the whole: time, difference, peak memory.

    python benchmarks/decoding.py --side 1024                     # beside the whole, three rounds
    python benchmarks/decoding.py --side 1024 --encode
    python benchmarks/decoding.py --side 4096 --ways strips-half  # where the whole is too big

1024px takes a good minute a way and round on two cores, 4096px sixteen times as long, once. The
SDXL configuration with random weights, fp32. Times are of rounds in turns in one process;
peaks of one call in a process of its own (VmHWM, with 0.33 GB of weights and torch). Differences
are the largest in [0, 1]. Results are added to `decoding.json`, a row a side and way.
"""

import json
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from typing import Any

import torch
from common import parser, peak_memory

from pixsigma.measuring import columns, interleaved, write_report
from pixsigma.models.decoding import WAYS, autoencoder_in


def flags() -> Namespace:
    found = parser(__doc__ or "", rounds=3)
    found.add_argument("--side", type=int, default=1024)
    ways = ["whole", "strips", "strips-half"]
    found.add_argument("--ways", nargs="+", choices=WAYS, default=ways)
    found.add_argument("--encode", action="store_true", help="pictures to latents")
    found.add_argument("--peak-of", help="internal: one call of this way, then its peak")
    args = found.parse_args()
    args.side, args.rounds = (256, 1) if args.quick else (args.side, args.rounds)
    return args


def calls(args: Namespace, ways: list[str]) -> dict[str, Any]:
    """What is measured, by way."""
    from pixsigma.config import AutoencoderConfig
    from pixsigma.models.autoencoder import KLAutoencoder

    torch.manual_seed(0)
    net = KLAutoencoder(AutoencoderConfig()).eval().requires_grad_(False)
    place = args.side // net.config.factor
    if args.encode:
        images = torch.rand(1, 3, args.side, args.side) * 2 - 1
        return {way: partial(autoencoder_in(way, net).encode, images) for way in ways}
    latents = torch.randn(1, net.config.latent_channels, place, place)
    return {way: partial(autoencoder_in(way, net).decode, latents) for way in ways}


@torch.no_grad()
def main() -> None:
    args = flags()
    if args.peak_of:
        (call,) = calls(args, [args.peak_of]).values()
        began = time.perf_counter()
        call()
        print(json.dumps({"peak": peak_memory().all, "alone": time.perf_counter() - began}))
        return
    kind = "encode" if args.encode else "decode"
    rows = {way: alone(args, way) for way in args.ways}
    if "whole" in args.ways:
        for way, row in beside(args).items():
            rows[way] |= row
    file = args.out / "decoding.json"
    kept = json.loads(file.read_text())["rows"] if file.is_file() else {}
    kept |= {f"{kind} {args.side} {way}": row for way, row in rows.items()}
    write_report(file, {"rows": kept})
    print(columns([line(name, row) for name, row in kept.items()]))


def alone(args: Namespace, way: str) -> dict[str, Any]:
    """One call in a process of its own."""
    command = [sys.executable, __file__, "--side", str(args.side), "--peak-of", way]
    command += ["--encode"] if args.encode else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def beside(args: Namespace) -> dict[str, dict[str, Any]]:
    """Times in turns with the whole, and differences to it."""
    answers: dict[str, torch.Tensor] = {}

    def kept(way: str, call: Any) -> None:
        answers[way] = call()

    variants = {way: partial(kept, way, call) for way, call in calls(args, args.ways).items()}
    times = interleaved(variants, args.rounds, warm=0)
    # pictures are in [-1, 1]: half of the difference is that in [0, 1]
    share = 1.0 if args.encode else 0.5
    return {
        way: {
            "difference": share * float((answers[way] - answers["whole"]).abs().max()),
            "seconds": timing.told(),
            "ratio": timing.over(times["whole"]).told(),
        }
        for way, timing in times.items()
    }


def line(name: str, row: dict[str, Any]) -> dict[str, object]:
    ratio, seconds = row.get("ratio"), row.get("seconds")
    return {
        "what": name,
        "seconds": seconds["median"] if seconds else row["alone"],
        "of whole": f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        if ratio
        else "-",
        "difference": f"{row['difference']:.1e}" if "difference" in row else "-",
        "peak GB": row["peak"] / 1e9,
    }


if __name__ == "__main__":
    main()
