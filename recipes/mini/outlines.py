"""The pictures of `data.py` that a ControlNet learns outlines on, with their outlines, encoded.

    python recipes/mini/outlines.py DATA FEATURES [--size 128] [--model mini]

One thing each and two captions: compositions are left out, since a hint is learned from pictures,
and text costs the most to prepare. DATA/outlines.jsonl tells which. A run that was stopped goes on
with the first file that is not there.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from pixsigma.datatools.prepare import Settings, Work, prepare
from pixsigma.weights.files import atomic_write


def choose(data: Path, num: int | None) -> Path:
    """Write the rows of single things into a file of their own; `num` of them, spread over all."""
    lines = (data / "captions.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] != "composition"]
    kept = rows if num is None else rows[:: max(1, len(rows) // num)][:num]
    told = [{"path": row["path"], "captions": row["captions"][:2]} for row in kept]
    with atomic_write(data / "outlines.jsonl") as temp:
        temp.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    print(f"{len(kept)} of {len(lines)} pictures in {data / 'outlines.jsonl'}")
    return data / "outlines.jsonl"


def main() -> None:
    """Choose pictures and encode them, with a line now and then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("features", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--model", default="mini", help="whose text encoder and autoencoder")
    parser.add_argument("--num", type=int, help="pictures, to see whether it works")
    args = parser.parse_args()
    settings = Settings(
        data=str(choose(args.data, args.num)),
        model=args.model,
        resolution=args.size,
        square=True,
        hints="edges",
    )
    said = time.monotonic()
    for progress in prepare(settings, args.features, Work(device=torch.device("cpu"))):
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"{progress.stage} {progress.done}/{progress.total}", flush=True)
    print(f"encoded in {args.features}")


if __name__ == "__main__":
    main()
