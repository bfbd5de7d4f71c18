"""What the data is, on one page that needs nothing beside it."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from pixsigma.buckets import AspectTable, nearest
from pixsigma.data.manifest import Row, read_bytes
from pixsigma.data.transforms import PictureError, cover_and_crop, open_picture
from pixsigma.datatools.scan import Reject
from pixsigma.weights.files import atomic_write

NUM_PICTURES, NUM_REJECTS, SIDE = 24, 200, 160
"""How many pictures and rejects the page shows, and about how large, in pixels."""

_WORDS = (1, 5, 10, 20, 40, 80, 160, 320)  # lower ends of the bars of caption lengths

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td {{ padding: .1rem .6rem .1rem 0; vertical-align: top; overflow-wrap: anywhere; }}
td.bar {{ width: 60%; }}
td.bar div {{ background: #4a7fb5; height: .9rem; min-width: 1px; }}
td.num {{ text-align: right; font-variant-numeric: tabular-nums; }}
figure {{ display: inline-block; margin: .3rem; width: 10rem; vertical-align: top; }}
figure img {{ max-width: 100%; }}
figcaption {{ font-size: .75rem; max-height: 4.5em; overflow: hidden; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_report(
    path: Path,
    index: Mapping[str, Any],
    rows: Sequence[Row],
    table: AspectTable,
    rejects: Sequence[Reject],
) -> None:
    """Write the page, whole or not at all."""
    title = f"{index['num_rows']:,} pictures for {index['resolution']} px"
    facts = {
        "encoded with": index["model"],
        "captions": f"{sum(len(row.captions) for row in rows):,}",
        "captions longer than the model reads": f"{index['num_cut_captions']:,} "
        f"(cut at {index['max_tokens']} tokens)",
        "not used": f"{index['num_rejects']:,}",
        "on disk": f"{sum(s['bytes'] for s in index['shards']) / 1e6:,.1f} MB "
        f"in {len(index['shards'])} shards",
    }
    used = {key: (h, w) for key, (h, w) in table.items() if f"{w}x{h}" in index["buckets"]}
    if moved := sum(nearest(table, r.height, r.width) not in used.values() for r in rows):
        facts["moved from small buckets"] = f"{moved:,}"
    parts = [
        _table([escape(name), escape(str(value))] for name, value in facts.items()),
        _section("Buckets", bars(index["buckets"])),
        _section("Words in short captions", bars(caption_lengths(rows, "short"))),
        _section("Words in long captions", bars(caption_lengths(rows, "long"))),
        _section("Pictures, as they are trained on", contact_sheet(rows, used)),
        _section("Not used", rejected(rejects)),
    ]
    with atomic_write(path) as temp:
        temp.write_text(_PAGE.format(title=escape(title), body="\n".join(parts)), "utf-8")


def caption_lengths(rows: Iterable[Row], kind: str) -> dict[str, int]:
    """How many captions of a kind have how many words."""
    counts: Counter[int] = Counter()
    for row in rows:
        for caption in row.captions:
            if caption.kind == kind:
                words = len(caption.text.split())
                counts[max(low for low in _WORDS if low <= words)] += 1
    ends = [f"{a}–{b - 1}" for a, b in pairwise(_WORDS)]
    names = dict(zip(_WORDS, [*ends, f"{_WORDS[-1]} and more"], strict=True))
    return {names[low]: counts[low] for low in _WORDS if counts[low]}


def bars(counts: Mapping[str, int]) -> str:
    """A histogram, one line a bar."""
    most = max(counts.values(), default=1)
    return _table(
        [escape(name), f"{num:,}", f'<div style="width:{100 * num / most:.1f}%"></div>']
        for name, num in counts.items()
    )


def contact_sheet(rows: Sequence[Row], table: AspectTable) -> str:
    """Pictures at even distances, cropped as for training, with their first caption."""
    step = max(1, len(rows) // NUM_PICTURES)
    figures = []
    for row in rows[::step][:NUM_PICTURES]:
        # rows with stored features may come without their pictures
        source = thumbnail(row, table)
        if source:
            caption = escape(row.captions[0].text)
            figures.append(
                f'<figure><img src="{source}" alt=""><figcaption>{caption}</figcaption></figure>'
            )
    return "\n".join(figures)


def thumbnail(row: Row, table: AspectTable) -> str:
    """A small JPEG as a data URL; empty where the picture cannot be read."""
    height, width = nearest(table, row.height, row.width)
    shrink = min(1.0, SIDE / max(height, width))
    try:
        image = open_picture(read_bytes(row))
    except (OSError, PictureError):
        return ""
    small = cover_and_crop(image, max(1, round(height * shrink)), max(1, round(width * shrink)))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def rejected(rejects: Sequence[Reject]) -> str:
    """How many for which reason, and the first of them by name."""
    if not rejects:
        return "<p>Nothing: every picture is used.</p>"
    counts = Counter(reject.reason for reject in rejects)
    named = _table(
        [escape(reject.name), escape(reject.reason), escape(reject.detail)]
        for reject in rejects[:NUM_REJECTS]
    )
    rest = len(rejects) - NUM_REJECTS
    more = f"<p>and {rest:,} more in rejects.jsonl</p>" if rest > 0 else ""
    return bars(dict(counts.most_common())) + named + more


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


def _table(rows: Iterable[Sequence[str]]) -> str:
    lines = []
    for cells in rows:
        kinds = ["", "num", "bar"] if cells[-1].startswith("<div") else [""] * len(cells)
        told = (f'<td class="{k}">{c}</td>' for k, c in zip(kinds, cells, strict=True))
        lines.append(f"<tr>{''.join(told)}</tr>")
    return f"<table>{''.join(lines)}</table>" if lines else ""
