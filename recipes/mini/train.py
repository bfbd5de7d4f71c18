"""Train mini's transformer by a recipe.

    python recipes/mini/train.py recipes/mini/64px.toml --out RUN [--resume] [--set run.steps=100]

Appends to RUN/metrics.jsonl; Ctrl-C and SIGKILL lose nothing that a checkpoint holds.
"""

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

from pixsigma.training.recipe import read_recipe
from pixsigma.training.trainer import Trainer


def override(text: str) -> tuple[str, Any]:
    """`section.key=value`, the value as in TOML or a bare string."""
    key, _, value = text.partition("=")
    try:
        return key, tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key, value


def main() -> None:
    """Parse, build, run, log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--set", action="append", default=[], type=override, dest="overrides")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(read_recipe(args.recipe, dict(args.overrides)), args.out)
    if args.resume and trainer.checkpoint_path.exists():
        trainer.resume()
    with (args.out / "metrics.jsonl").open("a") as log:
        for progress in trainer.run():
            log.write(json.dumps(vars(progress)) + "\n")
            log.flush()
            print(
                f"{progress.step}/{progress.steps} loss {progress.loss:.4f} "
                f"{progress.samples_per_second:.0f} samples/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
