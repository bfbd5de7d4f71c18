"""Pictures of `data.py`, each with another view of its thing, encoded: what an image prompt learns.

    python recipes/mini/views.py DATA FEATURES [--size 256] [--model mini]

The other view of a thing on a plain ground is the same drawing on another ground; of a composition
of one thing, which has a colour of its own, it is the picture itself. Both are mirrored, turned,
smaller and elsewhere (`moved`), so that a prompt tells what there is and not where. Views lie
beside their pictures as NAME.picture.png; DATA/views.jsonl lists the pictures.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from lines import Row, read_lines
from outlines import encode, moved, parser_of
from PIL import Image

from pixsigma.evaluation.questions import spread
from pixsigma.weights.files import write_lines

ALONE = ("single", "colours")
"""Tasks of compositions that show one thing."""


def views(rows: list[Row], rng: random.Random) -> Iterator[tuple[Row, Row]]:
    """Pictures of one thing and the rows that show it too."""
    drawings = defaultdict(list)
    for row in rows:
        if row["kind"] != "composition" and not row.get("composed"):
            drawings[row["style"], row["thing"]].append(row)
    for same in drawings.values():
        for row in same:
            others = [other for other in same if other is not row]
            yield row, rng.choice(others or [row])
    for row in rows:
        if row.get("task") in ALONE:
            yield row, row


def choose(data: Path, num: int | None) -> Path:
    """Write the views and the list of their pictures; `num` of them, spread over all."""
    rng = random.Random(0)
    kept = spread(list(views(read_lines(data / "captions.jsonl"), rng)), num)
    for row, other in kept:
        with Image.open(data / other["path"]) as picture:
            view = moved(picture.convert("RGB"), rng)
        view.save((data / row["path"]).with_suffix(".picture.png"))
    told = [{"path": row["path"], "captions": row["captions"][:2]} for row, _ in kept]
    write_lines(data / "views.jsonl", told)
    print(f"{len(told)} pictures of single things in {data / 'views.jsonl'}")
    return data / "views.jsonl"


def main() -> None:
    """Parse, choose, encode."""
    args = parser_of(__doc__).parse_args()
    encode(choose(args.data, args.num), args.features, args.model, args.size, "picture")


if __name__ == "__main__":
    main()
