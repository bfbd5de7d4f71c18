"""Predicted against measured peak memory, over settings that each run in a process of their own.

    python benchmarks/memory.py --quick                 # small settings, about a minute
    python benchmarks/memory.py --full                  # 512px to 2048px, strips and steps
    python benchmarks/memory.py --t5 FOLDER             # T5-XXL: writes 14 GB of weights there
    python benchmarks/memory.py --only 3 4              # some of them, by number; see --list

Rows are added to `memory.json`, one a setting, so that a long list can be measured in pieces; a
table of all goes to stdout. The peak is VmHWM, pages of mapped files included.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import OUT, peak_memory, write_encoders

from pixsigma.measuring import columns, write_report

QUICK: list[dict[str, Any]] = [
    {"what": "decode", "side": 256, "way": "whole"},
    {"what": "decode", "side": 512, "way": "whole"},
    {"what": "decode", "side": 512, "way": "strips"},
    {"what": "decode", "side": 512, "way": "strips-half"},
    {"what": "step", "side": 256},
]
FULL: list[dict[str, Any]] = [
    *({"what": "decode", "side": 1024, "way": way} for way in ("whole", "strips", "strips-half")),
    {"what": "decode", "side": 2048, "way": "strips"},
    {"what": "step", "side": 512},
    {"what": "step", "side": 1024},
]
T5: list[dict[str, Any]] = [
    {"what": "t5", "stored": "float16", "stay": False, "tokens": 77},
    {"what": "t5", "stored": "float16", "stay": True, "tokens": 20},
    {"what": "t5", "stored": "int8", "stay": False, "tokens": 20},
]


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--t5", type=Path, help="folder of benchmarks/text_encoder.py")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the settings asked for")
    parser.add_argument("--list", action="store_true", help="tell the numbers")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(json.loads(args.case))))
        return
    cases = (QUICK if args.quick else []) + (FULL if args.full else [])
    if args.t5:
        cases += [case | {"folder": str(args.t5 / case["stored"])} for case in T5]
    if args.list:
        print("\n".join(f"{i}  {name_of(case)}" for i, case in enumerate(cases)))
        return
    chosen = [case for i, case in enumerate(cases) if args.only is None or i in args.only]
    if not chosen:
        parser.error("nothing to measure: give --quick, --full or --t5; --list tells the numbers")
    if any(case["what"] == "t5" for case in chosen):
        write_encoders(args.t5)
    file = args.out / "memory.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else {}
    for case in chosen:
        print(name_of(case), flush=True)
        rows[name_of(case)] = measured(case)
        write_report(file, {"rows": rows})
    print(columns([line(name, row) for name, row in rows.items()]))


def name_of(case: dict[str, Any]) -> str:
    """Such as `decode 512 strips`."""
    stays = {True: "staying", False: "streamed"}
    words = [stays.get(value, value) for key, value in case.items() if key != "folder"]
    return " ".join(map(str, words))


def line(name: str, row: dict[str, Any]) -> dict[str, object]:
    return {
        "what": name,
        "predicted GB": row["predicted"] / 1e9,
        "measured GB": row["measured"] / 1e9,
        "off by": f"{row['predicted'] / row['measured'] - 1:+.0%}",
        "seconds": row["seconds"],
        "predicted s": row["predicted_seconds"],
    }


def measured(case: dict[str, Any]) -> dict[str, Any]:
    """One case in a fresh process."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured peak in bytes, and seconds, of a part alone."""
    import torch

    from pixsigma import machine, memory
    from pixsigma.config import AutoencoderConfig, T5Config, TransformerConfig
    from pixsigma.weights.facts import Facts

    stored = {"int8": 1.0, "float16": 2.0}[case.get("stored", "float16")]
    facts = Facts(
        name="random",
        transformer=TransformerConfig(),
        text_encoder=T5Config(),
        autoencoder=AutoencoderConfig(),
        stored={"transformer": 4.0, "text_encoder": stored, "autoencoder": 4.0},
    )
    side = case.get("side", 1024)
    tokens = case.get("tokens", 77)
    wish = memory.Wish(width=side, height=side, tokens=tokens, steps=1, guided=False)
    here = machine.this_machine(torch.device("cpu"), torch.float32)
    work, part = PARTS[case["what"]](case, facts, wish, here)
    # the plan itself took memory by now, so what it predicts is counted from here
    predicted = machine.resident_memory() + memory.SPARE + part.work
    if case["what"] == "t5":
        predicted += part.weights
    began = time.perf_counter()
    with torch.no_grad():
        work()
    return {
        "predicted": predicted,
        "measured": peak_memory().all,
        "seconds": time.perf_counter() - began,
        "predicted_seconds": part.seconds,
    }


def decode_case(case: dict[str, Any], facts: Any, wish: Any, here: Any) -> Any:
    """The SDXL autoencoder with random weights."""
    import torch

    from pixsigma import memory
    from pixsigma.models.autoencoder import KLAutoencoder
    from pixsigma.models.decoding import autoencoder_in

    part = memory.decoder_part(facts, wish, here, case["way"])
    net = KLAutoencoder(facts.autoencoder).eval().requires_grad_(False)
    latents = torch.randn(1, 4, wish.height // 8, wish.width // 8)
    return lambda: autoencoder_in(case["way"], net).decode(latents), part


def step_case(case: dict[str, Any], facts: Any, wish: Any, here: Any) -> Any:
    """One step of XL/2 with random weights, without guidance."""
    import torch

    from pixsigma import memory
    from pixsigma.models.transformer import PixArtTransformer

    part = memory.transformer_part(facts, wish, here)
    net = PixArtTransformer(facts.transformer).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.02)
    x, t = torch.randn(1, 4, wish.height // 8, wish.width // 8), torch.full((1,), 500.0)
    text = torch.randn(1, wish.tokens, facts.transformer.caption_channels)
    return lambda: net(x, t, text), part


def t5_case(case: dict[str, Any], facts: Any, wish: Any, here: Any) -> Any:
    """T5-XXL in its file: read for this prompt alone, or to stay."""
    import torch

    from pixsigma import memory
    from pixsigma.weights.folder import read_text_encoder

    stay = 10**12 if case["stay"] else True
    part = memory.text_part(facts, wish, here, stream=stay)
    net = read_text_encoder(case["folder"], dtype=torch.float32, stream=stay).encoder
    ids = torch.randint(3, 32000, (1, wish.tokens))

    def work() -> None:
        assert torch.isfinite(net(ids)).all()

    return work, part


PARTS = {"decode": decode_case, "step": step_case, "t5": t5_case}


if __name__ == "__main__":
    main()
