"""T5-XXL from its file: time and peak memory of a prompt, in fp16 and int8, streamed and staying.

    python benchmarks/text_encoder.py --folder BIG               # all; writes 9.4 + 4.7 GB there
    python benchmarks/text_encoder.py --folder BIG --write       # only the files
    python benchmarks/text_encoder.py --folder BIG --stored int8 --tokens 20

Weights are random, in the published shapes. Every case is a process of its own: a first prompt,
then `--rounds` more. `read` is the time to bring all matrices into memory and forget them without
computing: the limit of the page cache. The error is that of int8 against the fp16 file, both
computed from float32 inputs. The peak is VmHWM: what the process has of its own and, of the files
that it has mapped, the pages that it has touched and not given back. `own` is the first alone.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import OUT, peak_memory, positive, write_encoders

from pixsigma.measuring import Timing, bars, columns, relative_error, write_report


def main() -> None:
    """Write what is not there, run every case, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the weights are, or go")
    parser.add_argument("--write", action="store_true", help="only write the weights")
    parser.add_argument("--stored", nargs="+", default=["float16", "int8"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[20, 77])
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--layers", type=int, default=24, help="fewer only to try the script")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(**json.loads(args.case))))
        return
    write_encoders(args.folder, args.layers)
    if args.write:
        return
    rows = [
        measured(
            folder=str(args.folder), stored=stored, stay=stay, tokens=tokens, rounds=args.rounds
        )
        for stored in args.stored
        for stay in (True, False)
        for tokens in args.tokens
    ]
    tell(args.out, rows)


def measured(**case: Any) -> dict[str, Any]:
    """One case in a fresh process."""
    command = [sys.executable, __file__, "--folder", case["folder"], "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return case | json.loads(done.stdout.splitlines()[-1])


def run_case(folder: str, stored: str, stay: bool, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds of the prompts, peak in bytes, error against the answer of the fp16 file."""
    import torch

    from pixsigma.weights.folder import read_text_encoder

    net = read_text_encoder(
        Path(folder) / stored, dtype=torch.float32, stream=10**12 if stay else True
    ).encoder
    ids = torch.randint(3, 32000, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    seconds = []
    with torch.no_grad():
        for _ in range(rounds + 1):
            began = time.perf_counter()
            answer = net(ids)
            seconds.append(time.perf_counter() - began)
    peaks = peak_memory()
    read = [timed(net.read_only) for _ in range(0 if stay else 2)]
    file = Path(folder) / f"answer-{tokens}.pt"
    if stored == "float16":
        torch.save(answer, file)
    exact = torch.load(file) if file.is_file() else None
    return {
        "first": seconds[0],
        "warm": Timing(tuple(seconds[1:])).told(),
        "read": min(read, default=None),
        "peak_bytes": peaks.all,
        "own_bytes": peaks.own,
        "error": None if exact is None else relative_error(answer, exact),
    }


def timed(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def tell(out: Path, rows: list[dict[str, Any]]) -> None:
    """JSON, a plot, a table."""
    write_report(out / "text_encoder.json", {"rows": rows})
    groups: dict[str, dict[str, Timing]] = {}
    for row in rows:
        name = f"{row['stored']}, {'staying' if row['stay'] else 'streamed'}"
        timing = Timing(tuple(row["warm"]["rounds"]))
        groups.setdefault(f"{row['tokens']} tokens", {})[name] = timing
    bars(out / "text_encoder.png", groups, title="T5-XXL, a warm prompt", label="seconds")
    print(columns([line(row) for row in rows]))


def line(row: dict[str, Any]) -> dict[str, object]:
    warm = row["warm"]
    return {
        "stored": row["stored"],
        "matrices": "stay" if row["stay"] else "streamed",
        "tokens": row["tokens"],
        "warm": warm["median"],
        "quartiles": f"{warm['low']:.2f} to {warm['high']:.2f}",
        "first": row["first"],
        "read": row["read"] or "-",
        "peak GB": row["peak_bytes"] / 1e9,
        "own GB": row["own_bytes"] / 1e9,
        "error": "-" if row["error"] is None else f"{row['error']:.1e}",
    }


if __name__ == "__main__":
    main()
