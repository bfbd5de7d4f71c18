"""Short English phrases that mini's text encoder learns the meaning of.

Four sources: the things that mini draws, every emoji's name and search words, the whole words of
the teacher's vocabulary, and templates that put these into the kind of prompt that mini is given.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

COLOURS = [
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
    "gray",
    "teal",
    "cyan",
    "navy",
    "golden",
    "silver",
    "beige",
    "turquoise",
    "violet",
    "crimson",
    "lime",
    "maroon",
    "magenta",
    "olive",
    "scarlet",
    "indigo",
    "cream",
]
SIZES = ["big", "small", "large", "tiny", "huge", "little", "giant", "enormous"]
MOODS = [
    "happy",
    "sad",
    "angry",
    "sleepy",
    "cute",
    "scary",
    "funny",
    "old",
    "young",
    "fresh",
    "shiny",
    "fluffy",
    "round",
    "wooden",
    "cold",
    "hot",
    "sweet",
    "wild",
    "beautiful",
    "smiling",
    "crying",
    "broken",
    "new",
    "bright",
    "dark",
    "rainy",
    "sunny",
    "snowy",
]
COUNTS = [
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "several",
    "many",
    "2",
    "3",
    "4",
    "5",
]
PLACES = [
    "to the left of",
    "to the right of",
    "left of",
    "right of",
    "above",
    "below",
    "under",
    "over",
    "on top of",
    "next to",
    "beside",
    "behind",
    "in front of",
    "near",
    "with",
    "and",
    "inside",
]
CORNERS = [
    "on the left",
    "on the right",
    "at the top",
    "at the bottom",
    "in the middle",
    "in the centre",
    "in the corner",
    "in the top left",
    "in the bottom right",
    "in the upper right corner",
    "in the lower left corner",
]
GROUNDS = ["background", "backdrop", "sky", "wall", "grass", "table", "field"]
STYLES = [
    "a picture of",
    "an image of",
    "a photo of",
    "a drawing of",
    "an emoji of",
    "an icon of",
    "a flat icon of",
    "a 3d render of",
    "a cartoon of",
    "a painting of",
    "a sticker of",
    "a sketch of",
    "a close-up of",
]


def emoji_words(names: Path, keywords: Path) -> list[str]:
    """Every emoji's name and search words, in order, without doubles.

    `names` is unicode-emoji-json's data-by-emoji.json, `keywords` emojilib's emoji-en-US.json.
    """
    found = [entry["name"] for entry in json.loads(names.read_text("utf-8")).values()]
    for words in json.loads(keywords.read_text("utf-8")).values():
        found += [word.replace("_", " ") for word in words]
    clean = (re.sub(r"[^\w' -]", "", word).strip().lower() for word in found)
    return list(dict.fromkeys(word for word in clean if len(word) > 1))


def whole_words(vocabulary: Path) -> list[str]:
    """The words of three letters or more in a BERT vocabulary file."""
    lines = vocabulary.read_text("utf-8").splitlines()
    return [line for line in lines if re.fullmatch(r"[a-z]{3,}", line)]


def drawn_things(path: Path) -> list[str]:
    """The names and extra words of `things.txt`, whose head tells its format."""
    lines = path.read_text("utf-8").splitlines()
    fields = (
        field for line in lines if line[:1] not in ("", "#", "[") for field in line.split("|")
    )
    things = (thing.strip(" !").lower() for field in fields for thing in field.split(","))
    return list(dict.fromkeys(thing for thing in things if thing))


def phrases(
    things: list[str], names: list[str], words: list[str], number: int, seed: int = 0
) -> list[str]:
    """Things, names and words as they are, then templates over all, `number` without doubles."""
    rng = random.Random(seed)
    found = dict.fromkeys([*things, *names, *words])
    while len(found) < number:
        found[_dress(_templated((things, names, words), rng), rng)] = None
    return list(found)


def _templated(sources: tuple[list[str], ...], rng: random.Random) -> str:
    def thing() -> str:
        return rng.choice(rng.choices(sources, weights=(5, 3, 2))[0])

    def noun() -> str:
        colour = rng.choice(COLOURS) + " " if rng.random() < 0.5 else ""
        trait = rng.choice(SIZES + MOODS) + " " if rng.random() < 0.3 else ""
        return article(trait + colour + thing(), rng)

    def ground() -> str:
        colour = rng.choice(COLOURS)
        return rng.choice([colour, f"{article(colour, rng)} {rng.choice(GROUNDS)}"])

    makers: list[Callable[[], str]] = [
        noun,
        lambda: f"{noun()} on {ground()}",
        lambda: f"{noun()} {rng.choice(PLACES)} {noun()}",
        lambda: f"{noun()} {rng.choice(PLACES)} {noun()} on {ground()}",
        lambda: f"{noun()} and {noun()}",
        lambda: f"{noun()}, {noun()} and {noun()}",
        lambda: f"{noun()} {rng.choice(CORNERS)}",
        lambda: f"{noun()} {rng.choice(CORNERS)}, {noun()} {rng.choice(CORNERS)}",
        lambda: f"{rng.choice(COUNTS)} {plural(thing())}",
        lambda: f"{rng.choice(COUNTS)} {rng.choice(COLOURS)} {plural(thing())} on {ground()}",
        lambda: f"{rng.choice(STYLES)} {noun()}",
        lambda: f"{thing()} {thing()}",
        lambda: f"{thing()}, {thing()}, {thing()}",
        lambda: f"{rng.choice(COLOURS)} {thing()}",
    ]
    return rng.choice(makers)()


def _dress(phrase: str, rng: random.Random) -> str:
    if rng.random() < 0.3:
        phrase = phrase[0].upper() + phrase[1:]
    return phrase + "." if rng.random() < 0.2 else phrase


def article(noun: str, rng: random.Random) -> str:
    """The noun with a, an, the, or nothing."""
    if rng.random() < 0.25:
        return noun
    if rng.random() < 0.15:
        return f"the {noun}"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The regular plural, right for most nouns."""
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    return re.sub(r"y$", "ie", noun) + "s" if re.search(r"[^aeiou]y$", noun) else noun + "s"
