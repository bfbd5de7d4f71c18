"""Composed pictures: so many things, beside or above each other, in colours and sizes of their own.

Each layout is a plan (what a prompt asks, in the words of `pixsigma.evaluation`), a picture of it,
and captions that say exactly what is there, short and long.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from captions import PICTURE_NOUNS, STYLE_ADJECTIVES, STYLE_NOUNS, clear
from phrases import plural
from PIL import Image
from recolour import NEAR, WIDE, recoloured
from scenes import COLOURS as GROUNDS
from scenes import choose_colours
from solids import COLOURS, SOLIDS, draw_solid
from sources import with_article

SIDE = 256
GAP = 10  # pixels between things that do not touch

# What captions call it | the thing of things.txt; those of the second table have one main hue.
NOUNS = {
    "cat": "cat",
    "dog": "dog",
    "rabbit": "rabbit",
    "elephant": "elephant",
    "penguin": "penguin",
    "owl": "owl",
    "duck": "duck",
    "turtle": "turtle",
    "crab": "crab",
    "whale": "whale",
    "cactus": "cactus",
    "mushroom": "mushroom",
    "sunflower": "sunflower",
    "banana": "banana",
    "pineapple": "pineapple",
    "strawberry": "strawberry",
    "carrot": "carrot",
    "hamburger": "hamburger",
    "doughnut": "doughnut",
    "cupcake": "cupcake",
    "house": "house",
    "castle": "castle",
    "bus": "bus",
    "rocket": "rocket",
    "sailboat": "sailboat",
    "snowman": "snowman",
    "robot": "robot",
    "ghost": "ghost",
    "teddy bear": "teddy bear",
    "guitar": "guitar",
}
COLOURED = {
    "car": "automobile",
    "bird": "bird",
    "fish": "fish",
    "apple": "red apple",
    "umbrella": "umbrella",
    "balloon": "balloon",
    "dress": "dress",
    "shirt": "t-shirt",
    "backpack": "backpack",
    "heart": "red heart",
    "star": "star",
    "book": "blue book",
    "bell": "bell",
    "chair": "chair",
    "teapot": "teapot",
    "gem": "gem stone",
    "tulip": "tulip",
    "key": "key",
    "door": "door",
}
THINGS = NOUNS | COLOURED
MANY_SHADES = frozenset({"balloon", "heart", "shirt", "gem", "bell", "tulip"})
PLURALS = {"torus": "tori", "snowman": "snowmen", "fish": "fish"}
NUMBERS = {2: "two", 3: "three", 4: "four"}
OTHER_NAMES = {
    "cube": ("cube", "cube", "block"),
    "sphere": ("sphere", "sphere", "ball"),
    "car": ("car", "car", "automobile"),
}
# Nothing stands on these, and these stand on nothing.
POINTED = frozenset({"cone", "torus", "star", "balloon", "umbrella", "key", "tulip", "heart"})
RELATIONS = ("left of", "right of", "above", "below", "on top of")
OFFSETS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
PHRASES = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "on top of": ("on top of", "on"),
}
SIDES = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}
WEIGHTS = {
    "single": 0.14,
    "two": 0.17,
    "counting": 0.18,
    "colours": 0.14,
    "position": 0.22,
    "binding": 0.15,
}
"""Shares of the tasks in training."""
EVALUATED = {
    "single": 20,
    "two": 24,
    "counting": 24,
    "colours": 24,
    "position": 40,
    "binding": 24,
}
"""Prompts a task in the evaluation."""

Art = Mapping[tuple[str, str], Image.Image]
Key = frozenset[tuple[str, str | None, int]]


@dataclass(frozen=True)
class Part:
    """A thing of a plan; `size` is "small", "large" or "" where nothing is said of it."""

    name: str
    colour: str | None = None
    count: int = 1
    size: str = ""

    def words(self, rng: random.Random | None = None) -> str:
        """Size, colour and noun without article; `rng` takes other names for it too."""
        names = OTHER_NAMES.get(self.name, (self.name,)) if rng else (self.name,)
        noun = rng.choice(names) if rng else names[0]
        if self.count > 1:
            noun = PLURALS.get(noun, plural(noun))
        return " ".join(word for word in (self.size, self.colour, noun) if word)

    def phrase(self, rng: random.Random | None = None) -> str:
        """The words behind an article or a number."""
        words = self.words(rng)
        return with_article(words) if self.count == 1 else f"{NUMBERS[self.count]} {words}"


@dataclass(frozen=True)
class Plan:
    """What a composition shows: one or two parts, and how the first lies to the second."""

    task: str
    parts: tuple[Part, ...]
    relation: str | None = None

    @property
    def key(self) -> Key:
        """What makes two plans the same composition, wherever its things lie."""
        return frozenset((part.name, part.colour, part.count) for part in self.parts)

    def prompt(self) -> str:
        """The plainest words for it."""
        phrases = [part.phrase() for part in self.parts]
        if self.relation:
            return f"{phrases[0]} {PHRASES[self.relation][0]} {phrases[1]}"
        return " and ".join(phrases)

    def question(self) -> dict[str, object]:
        """The row of eval/prompts.jsonl."""
        things = [
            {"name": part.name, "colour": part.colour, "count": part.count} for part in self.parts
        ]
        return {
            "measure": "compositions",
            "task": self.task,
            "prompt": self.prompt(),
            "things": things,
            "relation": self.relation,
        }


# Plans


def plan(task: str, rng: random.Random) -> Plan:
    """A random plan of a task."""
    if task == "single":
        solid = rng.random() < 0.4
        part = _solid(rng) if solid else Part(rng.choice(list(THINGS)))
        return Plan(task, (_sized(part, rng),))
    if task == "counting":
        part = _solid(rng) if rng.random() < 0.4 else Part(rng.choice(list(THINGS)))
        return Plan(task, (Part(part.name, part.colour, rng.randint(2, 4)),))
    if task == "colours":
        return Plan(task, (_coloured(rng),))
    if task == "two":
        return Plan(task, _two_sizes(_pair(rng, 0.15), rng))
    if task == "binding":
        first, second = _coloured(rng), _coloured(rng)
        while second.name == first.name or second.colour == first.colour:
            second = _coloured(rng)
        return Plan(task, (first, second))
    relation = rng.choice(RELATIONS)
    parts = _pair(rng, 0.5)
    while relation == "on top of" and parts[1].name in POINTED:
        parts = _pair(rng, 0.5)
    return Plan(task, parts, relation)


def _solid(rng: random.Random) -> Part:
    return Part(rng.choice(list(SOLIDS)), rng.choice(list(COLOURS)))


def _coloured(rng: random.Random) -> Part:
    """A solid or a thing, in a colour."""
    names = list(SOLIDS) if rng.random() < 0.5 else list(COLOURED)
    return Part(rng.choice(names), rng.choice(list(COLOURS)))


def _pair(rng: random.Random, solids: float) -> tuple[Part, Part]:
    """Two different things, or with this chance two solids of different colours."""
    if rng.random() < solids:
        first, second = _solid(rng), _solid(rng)
        while second.colour == first.colour or second.name == first.name:
            second = _solid(rng)
        return first, second
    first_name, second_name = rng.sample(list(THINGS), 2)
    return Part(first_name), Part(second_name)


def _sized(part: Part, rng: random.Random) -> Part:
    return Part(part.name, part.colour, part.count, rng.choice(("", "", "small", "large")))


def _two_sizes(parts: tuple[Part, Part], rng: random.Random) -> tuple[Part, Part]:
    """A small and a large one, now and then."""
    if rng.random() < 0.65:
        return parts
    sizes = rng.sample(("small", "large"), 2)
    a, b = (Part(p.name, p.colour, 1, size) for p, size in zip(parts, sizes, strict=True))
    return a, b


def questions(seed: int = 0) -> list[Plan]:
    """The plans of the evaluation: different compositions, relations and counts in equal parts."""
    rng = random.Random(seed)
    found: list[Plan] = []
    seen: set[Key] = set()
    for task, wanted in EVALUATED.items():
        chosen: list[Plan] = []
        while len(chosen) < wanted:
            new = plan(task, rng)
            plain = Plan(task, tuple(Part(p.name, p.colour, p.count) for p in new.parts))
            due = RELATIONS[len(chosen) % len(RELATIONS)] if task == "position" else None
            count = 2 + len(chosen) % 3 if task == "counting" else new.parts[0].count
            if new.relation == due and new.parts[0].count == count and plain.key not in seen:
                chosen.append(Plan(task, plain.parts, new.relation))
                seen.add(plain.key)
        found += chosen
    return found


def training_plans(number: int, rng: random.Random, kept_away: set[Key]) -> Iterator[Plan]:
    """`number` plans in the shares of WEIGHTS, none a composition of `kept_away`."""
    tasks = rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()), k=number)
    for task in tasks:
        new = plan(task, rng)
        while new.key in kept_away:
            new = plan(task, rng)
        yield new


# Pictures


def art_of(part: Part, style: str, art: Art) -> Image.Image:
    """The visible part of a thing's drawing, in its colour."""
    if part.name in SOLIDS:
        drawn = draw_solid(part.name, part.colour or "red", style)
    else:
        drawn = art[style, THINGS[part.name]]
        near = WIDE if part.name in MANY_SHADES else NEAR
        drawn = recoloured(drawn, part.colour, near) if part.colour else drawn
    return drawn.crop(drawn.getchannel("A").getbbox())


Box = tuple[float, float, float, float]


def compose(
    asked: Plan, style: str, art: Art, rng: random.Random
) -> tuple[Image.Image, str, str | None]:
    """The picture (256 px), the name of its ground, and the relation that it shows."""
    drawn = [art_of(part, style, art) for part in asked.parts for _ in range(part.count)]
    boxes, shown = _boxes(asked, drawn, rng)
    ground = _ground(drawn, rng)
    rgb = (255, 255, 255) if ground == "white" else GROUNDS[ground]
    canvas = Image.new("RGBA", (SIDE, SIDE), (*rgb, 255))
    # What stands on another is drawn after it.
    for one, (left, top, right, bottom) in reversed(list(zip(drawn, boxes, strict=True))):
        size = (round(right - left), round(bottom - top))
        small = one.resize(size, Image.Resampling.LANCZOS)
        canvas.alpha_composite(small, (round(left), round(top)))
    return canvas.convert("RGB"), ground, shown


def _ground(drawn: list[Image.Image], rng: random.Random) -> str:
    """White in half of the pictures, else a colour that everything stands out from."""
    if rng.random() < 0.5:
        return "white"
    whole = Image.new("RGBA", (64 * len(drawn), 64))
    for i, one in enumerate(drawn):
        whole.paste(one.resize((64, 64)), (64 * i, 0))
    names = choose_colours(whole, 1, rng)
    far = [n for n in names if all(choose_far(one, n) for one in drawn)]
    return far[0] if far else "white"


def choose_far(one: Image.Image, ground: str) -> bool:
    """Whether hardly a pixel of a thing has nearly the colour of a ground."""
    pixels = np.asarray(one.resize((64, 64)), dtype=np.float64)
    solid = pixels[pixels[..., 3] > 128][:, :3]
    distance = np.linalg.norm(solid - np.array(GROUNDS[ground]), axis=1)
    return float((distance < 60).mean()) < 0.12


def _boxes(
    asked: Plan, drawn: list[Image.Image], rng: random.Random
) -> tuple[list[Box], str | None]:
    if len(drawn) == 1:
        return [_alone(asked.parts[0], drawn[0], rng)], None
    if asked.task == "counting":
        return _several(drawn, rng), None
    if asked.relation == "on top of":
        return _stacked(drawn, rng), asked.relation
    relation = asked.relation or "left of"  # as the order of the words has it
    return _beside(asked.parts, drawn, relation, rng), relation


def _fit(one: Image.Image, longest: float) -> tuple[float, float]:
    ratio = longest * SIDE / max(one.size)
    return one.width * ratio, one.height * ratio


def _box(middle: tuple[float, float], size: tuple[float, float]) -> Box:
    """A box about `middle` (pixels), moved into the picture where it sticks out."""
    left, top = (min(max(m - s / 2, 4), SIDE - 4 - s) for m, s in zip(middle, size, strict=True))
    return left, top, left + size[0], top + size[1]


def _alone(part: Part, one: Image.Image, rng: random.Random) -> Box:
    span = {"small": (0.26, 0.36), "large": (0.78, 0.92), "": (0.55, 0.8)}[part.size]
    size = _fit(one, rng.uniform(*span))
    free = [(SIDE - s) / 2 for s in size]
    shift = 0.6 if part.size == "small" else 0.3
    middle = [SIDE / 2 + rng.uniform(-shift, shift) * f for f in free]
    return _box((middle[0], middle[1]), size)


def _beside(
    parts: tuple[Part, ...], drawn: list[Image.Image], relation: str, rng: random.Random
) -> list[Box]:
    """The first thing towards one side, the second towards the other, not touching."""
    dx, dy = OFFSETS[relation]
    base = rng.uniform(0.34, 0.43)
    spans = {"": base, "small": 0.24, "large": 0.52}
    boxes = []
    for part, one, sign in zip(parts, drawn, (1, -1), strict=True):
        size = _fit(one, spans[part.size] * rng.uniform(0.95, 1.05))
        reach = 0.24 if not part.size else (0.3 if part.size == "small" else 0.2)
        jitter = [rng.uniform(-0.03, 0.03) for _ in range(2)]
        middle = (
            SIDE * (0.5 + sign * dx * reach + jitter[0]),
            SIDE * (0.5 + sign * dy * reach + jitter[1]),
        )
        boxes.append(_box(middle, size))
    return boxes if _apart(boxes) else _beside(parts, drawn, relation, rng)


def _several(drawn: list[Image.Image], rng: random.Random) -> list[Box]:
    """Two to four of one kind: in a row, or one in each quarter of the picture."""
    number = len(drawn)
    if number < 4 and rng.random() < 0.5:
        longest, room = rng.uniform(0.7, 0.85) / number, 1 / number
        middles = [((i + 0.5) / number, rng.uniform(0.44, 0.56)) for i in range(number)]
    else:
        longest, room = rng.uniform(0.28, 0.38), 0.47
        quarters = rng.sample([(x, y) for x in (0.265, 0.735) for y in (0.265, 0.735)], number)
        free = (room - longest) / 2 - GAP / SIDE / 2
        middles = [
            (x + rng.uniform(-free, free), y + rng.uniform(-free, free)) for x, y in quarters
        ]
    return [
        _box((SIDE * x, SIDE * y), _fit(one, longest))
        for one, (x, y) in zip(drawn, middles, strict=True)
    ]


def _stacked(drawn: list[Image.Image], rng: random.Random) -> list[Box]:
    """The first thing stands on the second."""
    upper, lower = drawn
    below = _fit(lower, rng.uniform(0.42, 0.5))
    above = _fit(upper, rng.uniform(0.34, 0.42))
    x = SIDE * rng.uniform(0.42, 0.58)
    sink = _depth(lower) * below[1] + 2
    total = below[1] + above[1] - sink
    foot = (SIDE + total) / 2 + rng.uniform(0, 0.5) * (SIDE - total) / 2 - 4
    base = _box((x, foot - below[1] / 2), below)
    left = x - above[0] / 2 + rng.uniform(-0.05, 0.05) * below[0]
    top = base[1] + sink - above[1]
    return [(left, top, left + above[0], top + above[1]), base]


def _depth(lower: Image.Image) -> float:
    """How far below its box's top a thing is on average in its middle third, at most 0.25."""
    alpha = np.asarray(lower.getchannel("A")) > 128
    third = alpha[:, lower.width * 5 // 12 : lower.width * 7 // 12]
    tops = np.where(third.any(0), third.argmax(0), 0)
    return min(0.25, float(tops.mean()) / lower.height)


def _apart(boxes: list[Box]) -> bool:
    return all(
        a[2] + GAP <= b[0] or b[2] + GAP <= a[0] or a[3] + GAP <= b[1] or b[3] + GAP <= a[1]
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )


# Captions


def captions(
    asked: Plan, style: str, ground: str, shown: str | None, rng: random.Random
) -> list[str]:
    """Two to six captions, short and long, that leave nothing open."""
    named = ground != "white" or rng.random() < 0.5
    where = f" on {with_article(ground)} background" if named else ""
    what = _said(asked, rng)
    picture = f"{rng.choice(STYLE_ADJECTIVES[style])} {rng.choice(PICTURE_NOUNS)}"
    found = [
        asked.prompt() if not any(p.size for p in asked.parts) else what,
        f"{what}{where}",
        f"{what}{where}, {rng.choice(STYLE_NOUNS[style])}",
        f"{_said(asked, rng)}, {rng.choice(STYLE_NOUNS[style])}",
        f"A {picture} of {_said(asked, rng)}{where}.",
        f"A {picture}{where}. {_told(asked, shown, rng)}",
    ]
    return clear(found, style, ground)


def _said(asked: Plan, rng: random.Random) -> str:
    phrases = [part.phrase(rng) for part in asked.parts]
    if asked.relation:
        first, second, relation = *phrases, asked.relation
        if relation in OFFSETS and rng.random() < 0.2:
            a, b = SIDES[relation]
            return f"{first} {a} and {second} {b}"
        return f"{first} {rng.choice(PHRASES[relation])} {second}"
    return " and ".join(phrases)


def _told(asked: Plan, shown: str | None, rng: random.Random) -> str:
    """A sentence or two about every thing and where it lies."""
    phrases = [part.phrase(rng) for part in asked.parts]
    if len(phrases) == 1:
        part = asked.parts[0]
        if part.count > 1:
            return f"There are {phrases[0]}, and nothing else."
        return f"It shows {phrases[0]}, and nothing else."
    assert shown is not None
    if shown == "on top of":
        return f"There are two things: {phrases[0]}, which stands on top of {phrases[1]}."
    a, b = SIDES[shown]
    return f"There are two things: {phrases[0]} {a} and {phrases[1]} {b}."
