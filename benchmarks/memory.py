"""Predicted against measured peak memory, over settings that each run in a process of their own.

    python benchmarks/memory.py --quick                 # small settings, about a minute
    python benchmarks/memory.py --folder BIG            # the same with full-size random weights
    python benchmarks/memory.py --t5 FOLDER             # T5-XXL streamed: writes 9.4 GB of random
                                                        # fp16 weights there, and removes them

Results go to `memory.json` beside a table on stdout.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

QUICK: list[dict[str, Any]] = [
    {"what": "decode", "side": 256, "way": "whole"},
    {"what": "decode", "side": 512, "way": "whole"},
    {"what": "decode", "side": 512, "way": "strips"},
    {"what": "decode", "side": 512, "way": "strips-half"},
]
FULL: list[dict[str, Any]] = [
    *({"what": "decode", "side": 1024, "way": way} for way in ("whole", "strips", "strips-half")),
    {"what": "decode", "side": 2048, "way": "strips"},
    {"what": "decode", "side": 4096, "way": "strips-half"},
    {"what": "decode", "side": 4096, "way": "strips-spill"},
    {"what": "step", "side": 512},
    {"what": "step", "side": 1024},
]


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--t5", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=[20])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(json.loads(arguments.case))))
        return
    cases = (QUICK if arguments.quick else []) + (FULL if arguments.full else [])
    rows = [measured(case) for case in cases]
    if arguments.t5:
        written = write_t5(arguments.t5)
        try:
            for tokens in arguments.tokens:
                case = {"what": "t5", "folder": str(arguments.t5), "tokens": tokens}
                rows += [measured(case), measured(case)]
        finally:
            if written:
                shutil.rmtree(arguments.t5)
    arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


def measured(case: dict[str, Any]) -> dict[str, Any]:
    """One case in a fresh process."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {**case, "error": done.stderr.strip().splitlines()[-1:]}
    row = {**case, **json.loads(done.stdout.splitlines()[-1])}
    name = " ".join(str(value) for key, value in case.items() if key != "folder")
    print(
        f"{name:<28} predicted {row['predicted'] / 1e9:6.2f} GB  measured "
        f"{row['measured'] / 1e9:6.2f} GB  {row['predicted'] / row['measured'] - 1:+5.0%}  "
        f"{row['seconds']:7.1f} s",
        flush=True,
    )
    return row


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured peak in bytes, and seconds, of a part alone."""
    import torch

    from pixsigma import machine, memory
    from pixsigma.config import AutoencoderConfig, T5Config, TransformerConfig
    from pixsigma.weights.facts import Facts

    facts = Facts(
        name="random",
        transformer=TransformerConfig(),
        text_encoder=T5Config(),
        autoencoder=AutoencoderConfig(),
        stored={"transformer": 4.0, "text_encoder": 2.0, "autoencoder": 4.0},
    )
    side = case.get("side", 1024)
    wish = memory.Wish(
        width=side, height=side, tokens=case.get("tokens", 77), steps=1, guided=False
    )
    here = machine.Machine(
        device=torch.device("cpu"), memory=10**12, base=machine.resident_memory()
    )
    work, part = PARTS[case["what"]](case, facts, wish, here)
    # the plan itself took memory by now, so what it predicts is counted from here
    predicted = machine.resident_memory() + memory.SPARE + part.work
    if case["what"] == "t5":
        predicted += part.weights
    began = time.perf_counter()
    with torch.no_grad():
        work()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"predicted": predicted, "measured": peak, "seconds": seconds}


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
    """T5-XXL streamed."""
    import torch

    from pixsigma import memory
    from pixsigma.weights.streaming import open_streamed

    part = memory.text_part(facts, wish, here, stream=True)
    file = Path(case["folder"]) / "model.safetensors.index.json"
    net = open_streamed(file, facts.text_encoder, torch.float32)
    ids = torch.randint(3, 32000, (1, wish.tokens))

    def work() -> None:
        assert torch.isfinite(net(ids)).all()

    return work, part


PARTS = {"decode": decode_case, "step": step_case, "t5": t5_case}


def write_t5(folder: Path) -> bool:
    """Random weights shaped as T5-XXL in fp16, a shard a layer; False where they are there."""
    import torch
    from safetensors.torch import save_file

    from pixsigma.config import T5Config
    from pixsigma.models.t5 import T5Encoder
    from pixsigma.weights.files import Tensors
    from pixsigma.weights.keymaps import T5

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    room, need = shutil.disk_usage(folder).free, 11 * 10**9
    if room < need:
        raise SystemExit(f"{folder} has {room / 1e9:.0f} GB of room, the weights need 11")
    with torch.device("meta"):
        specs = T5.to_theirs(Tensors.of(T5Encoder(T5Config()).state_dict())).specs
    owner: dict[str, str] = {}
    shards: dict[str, list[str]] = {}
    for name in specs:
        layer = name.split(".")[2] if name.startswith("encoder.block") else "rest"
        owner[name] = f"model-{layer}.safetensors"
        shards.setdefault(owner[name], []).append(name)
    # numbers of one length, so that other layers cost no more than the writing
    noise = torch.randn(42 * 10**6).half()
    for file, names in shards.items():
        tensors = {}
        for name in names:
            shape = specs[name].shape
            num = specs[name].num_elements
            if len(shape) == 1:
                tensors[name] = torch.ones(shape, dtype=torch.float16)
            else:
                flat = noise.repeat(-(-num // len(noise)))[:num]
                tensors[name] = flat.view(shape) * shape[-1] ** -0.5
        save_file(tensors, str(folder / file))
    index.write_text(json.dumps({"weight_map": owner}))
    return True


if __name__ == "__main__":
    main()
