"""The pictures of `data.py` that a ControlNet learns outlines on: one thing each, two captions.

    python recipes/mini/outlines.py DATA

Writes DATA/outlines.jsonl, which `pixsigma prepare` reads. Compositions are left out, and so are
captions beyond the second: a hint is learned from pictures, and text costs the most to prepare.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    """Choose rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    rows = [json.loads(line) for line in (data / "captions.jsonl").read_text().splitlines()]
    kept = [
        {"path": row["path"], "captions": row["captions"][:2]}
        for row in rows
        if row["kind"] != "composition"
    ]
    lines = (json.dumps(row) + "\n" for row in kept)
    (data / "outlines.jsonl").write_text("".join(lines))
    print(f"{len(kept)} of {len(rows)} pictures in {data / 'outlines.jsonl'}")


if __name__ == "__main__":
    main()
