"""Captions that say exactly what a picture shows, short and long, in varied words.

What a caption leaves out means one thing: a style that is not named is 3D, a ground that is not
named is white, and of two things the first stands left. Where it may mean several, a short training
learns their mean, and draws that.
"""

import random
import re

from sources import Thing, with_article

STYLE_ADJECTIVES = {
    "3D": ("glossy 3D", "3D rendered", "shiny 3D"),
    "flat": ("flat", "flat vector", "simple flat"),
}
STYLE_NOUNS = {
    "3D": ("3D", "3D render", "3D style"),
    "flat": ("flat", "flat icon", "flat style"),
}
PICTURE_NOUNS = ("picture", "illustration", "drawing")
# emojilib's keywords hold file-system and slang words that say nothing of a picture.
VAGUE_KEYWORDS = frozenset(
    {"nature", "mac", "staffmode", "outer space", "deploy", "ops", "meow", "ship", "work"}
)
FEELINGS = {"happy": ("a happy face", "a smiling face"), "sad": ("a sad face",)}


def caption_plain(thing: Thing, style: str, background: str, rng: random.Random) -> list[str]:
    """Four to seven captions of one thing on a plain ground; white is named in half of them."""
    named = background != "white" or rng.random() < 0.5
    where = f" on {with_article(background)} background" if named else ""
    captions = [
        thing.phrase,
        f"{thing.bare}, {rng.choice(STYLE_NOUNS[style])}",
        f"{thing.phrase}{where}",
        f"{thing.phrase}{where}, {rng.choice(STYLE_NOUNS[style])}",
        _in_style(thing.bare, style, rng) + where,
        _sentence(thing.phrase + where, style, rng),
        _sentence(f"{_subject(thing, rng)}{where}".rstrip(","), style, rng),
    ]
    return clear(captions, style, background)


def clear(captions: list[str], style: str, ground: str) -> list[str]:
    """Those that tell style and ground, or leave out what is meant without a word."""
    return [
        text
        for text in captions
        if (style == "3D" or re.search(r"\bflat\b", text))
        and (ground == "white" or f" {ground} background" in text)
    ]


def caption_composed(
    thing: Thing, style: str, *, small: bool, face: str, where: str, rng: random.Random
) -> list[str]:
    """Two to five captions of a thing that may be small, may wear a face and stands `where`."""
    subject = thing.phrase
    if small:
        article = "the small" if thing.phrase.startswith("the ") else "a small"
        subject = f"{article} {thing.bare}"
    wears = f" with {rng.choice(FEELINGS[face])}" if face else ""
    feels = f" with {FEELINGS[face][0]}" if face else ""
    short = f"{subject}{feels} {where}".strip()
    captions = [
        short,
        f"{subject}{wears} {where}".strip(),
        _capital(f"{short}."),
        f"{short}, {rng.choice(STYLE_NOUNS[style])}",
        _sentence(f"{subject}{wears} {where}".strip(), style, rng),
    ]
    return clear(captions, style, "white")  # where it stands, all of them say


def _subject(thing: Thing, rng: random.Random) -> str:
    """The phrase, most times followed by what else the thing is called or is."""
    words = [w for w in thing.keywords if w not in VAGUE_KEYWORDS and w not in thing.phrase]
    words = rng.sample(words, min(len(words), rng.choice((0, 0, 1))))
    extras = [w for w in thing.extras if w not in words]
    words = rng.sample(extras, min(len(extras), rng.choice((0, 1, 2)))) + words
    # Kinds of two words ("toy or game") order the list and describe nothing.
    known = " ".join([thing.phrase, *words])
    if rng.random() < 0.4 and " " not in thing.kind and thing.kind not in known:
        words.append(thing.kind)
    return thing.phrase + "".join(f", {word}" for word in words) + ("," if words else "")


def _in_style(bare: str, style: str, rng: random.Random) -> str:
    return f"{rng.choice(STYLE_ADJECTIVES[style])} {rng.choice(PICTURE_NOUNS)} of {bare}"


def _sentence(subject: str, style: str, rng: random.Random) -> str:
    picture = f"{rng.choice(STYLE_ADJECTIVES[style])} {rng.choice(PICTURE_NOUNS)}"
    return f"A {picture} of {subject}."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
