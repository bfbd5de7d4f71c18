"""What mini is asked to draw one thing at a time: known things, held-out pairs, unseen words."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lines import Row
from phrases import plural
from sources import Thing, with_article

WHERE = "on a white background"


def things_asked(things: Iterable[Thing], held_out: Iterable[Row]) -> list[Row]:
    """Every thing on white, and the held-out pairs in their style on white."""
    known = {thing.name: thing for thing in things}
    plain = [_row("things", f"{thing.phrase} {WHERE}", thing.name) for thing in known.values()]
    pairs = [
        _row("held_out", f"{known[row['thing']].phrase} {WHERE}, {row['style']}", row["thing"])
        for row in held_out
    ]
    return plain + pairs


def _row(measure: str, prompt: str, thing: str) -> Row:
    return {"measure": measure, "prompt": prompt, "thing": thing}


def synonyms(listing: Path) -> list[tuple[str, str]]:
    """Words and the thing that they mean, of each line `words | thing`."""
    lines = [line for line in listing.read_text("utf-8").splitlines() if line]
    pairs = [line.split("|") for line in lines if not line.startswith("#")]
    return [(words.strip(), thing.strip()) for words, thing in pairs]


def forms(words: str) -> tuple[str, str]:
    """What a caption would say: the words, and their plural."""
    return words, plural(words)


def synonyms_asked(listing: Path, things: Sequence[Thing], captions: Sequence[str]) -> list[Row]:
    """Each synonym of the listing on white.

    Raises SystemExit for words of which all occur in captions, and for an unknown thing.
    """
    names = {thing.name for thing in things}
    known = set(re.findall(r"[a-z']+", " ".join(captions).lower()))
    rows = []
    for words, thing in synonyms(listing):
        if thing not in names:
            raise SystemExit(f"{listing.name}: {thing!r} is not in things.txt")
        if any(known.issuperset(form.split()) for form in forms(words)):
            raise SystemExit(f"{listing.name}: {words!r} is in a caption, so it is no new word")
        rows.append(_row("synonyms", f"{with_article(words)} {WHERE}", thing))
    return rows
