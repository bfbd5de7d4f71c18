"""Make the pictures and captions that mini is trained on: `python recipes/mini/data.py OUT`.

Needs npm (for the downloads) and resvg-py. OUT receives images/*.png, captions.jsonl,
held_out.jsonl (pairs of style and thing kept from training) and eval/ (questions and white
references). `--composed 9000` adds compositions, in images/c*.png, and leaves all others as they
are; `--questions-only` writes eval/ alone.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from captions import caption_composed, caption_plain
from layouts import COLOURED, THINGS, Part, art_of, compose, questions, training_plans
from layouts import captions as layout_captions
from lines import Row, read_lines
from PIL import Image, ImageOps
from questions import forms, synonyms, synonyms_asked, things_asked
from scenes import (
    COLOURS,
    PLACES,
    SIDE,
    choose_colours,
    draw_scene,
    place_plain,
    place_standing,
    with_face,
)
from solids import COLOURS as NAMED_COLOURS
from solids import SOLIDS
from sources import Thing, fetch, read_art, read_things, slug, with_article

from pixsigma.weights.files import write_lines

LISTING = Path(__file__).with_name("things.txt")
SYNONYMS = Path(__file__).with_name("synonyms.txt")
STYLES = ("3D", "flat")
COLOURED_PLACEMENTS = 4
HELD_OUT_SHARE = 0.05


def _names(listed: str) -> list[str]:
    return listed.split("|")


# Always trained on in both styles: the prompts of the model card are made of them.
KEPT = frozenset(
    _names(
        "cactus|red apple|green apple|cat|cat face|dog|house|house with garden|automobile|"
        "evergreen tree|deciduous tree|palm tree|sun|sun with face|fish|tropical fish|desert|"
        "grinning face|smiling face|star|crescent moon|rocket|pizza"
    )
)
FACED = _names(
    "red apple|lemon|tomato|potato|egg|cloud|balloon|star|tangerine|pear|peach|onion|"
    "droplet|mushroom|pineapple|banana|eggplant|light bulb|full moon"
)
# x, y, width of the face as parts of the art's frame, where its middle is no good place.
FACE_ANCHORS = {
    "cactus": (0.52, 0.27, 0.28),
    "mushroom": (0.5, 0.74, 0.26),
    "pineapple": (0.5, 0.66, 0.3),
    "light bulb": (0.5, 0.36, 0.34),
}
IN_SCENE = {
    "desert": "camel|palm tree|tent|lizard|snake|giraffe|lion|rocket|automobile|elephant|house|"
    "red apple|robot|dog|cat|flying saucer|penguin",
    "beach": "crab|palm tree|umbrella on ground|dog|turtle|spiral shell|soccer ball|bicycle|"
    "pineapple|sailboat|cactus|chair",
    "meadow": "house|cow|horse|ewe|pig|deciduous tree|evergreen tree|tractor|rabbit|sunflower|dog|"
    "cat|bicycle|bus|red apple|castle|mushroom|cactus|automobile|soccer ball",
    "night sky": "rocket|crescent moon|full moon|star|flying saucer|owl|bat|ringed planet|ghost|"
    "alien|airplane|shooting star",
    "sea": "fish|tropical fish|octopus|whale|shark|dolphin|jellyfish|turtle|crab|spiral shell",
    "snow": "penguin|polar bear|snowman|evergreen tree|house|deer|rabbit|cat|cactus",
}
Art = dict[tuple[str, str], Image.Image]


def choose_held_out(things: list[Thing], rng: random.Random) -> set[tuple[str, str]]:
    """About 5 % of the pairs, each thing in one style at most, so that its other style is seen."""
    free = [thing.name for thing in things if thing.name not in KEPT]
    chosen = rng.sample(free, round(HELD_OUT_SHARE * len(things) * len(STYLES)))
    return {(rng.choice(STYLES), name) for name in chosen}


def plain_rows(
    thing: Thing, style: str, art: Image.Image, rng: random.Random
) -> Iterator[tuple[Image.Image, Row]]:
    """The thing on white at full size, then on named colours at varied sizes and places."""
    yield (
        place_plain(art, (255, 255, 255), scale=1.0, shift=(0, 0)),
        _row(thing, style, "white", caption_plain(thing, style, "white", rng)),
    )
    for colour in choose_colours(art, COLOURED_PLACEMENTS, rng):
        flips = thing.mirrors and rng.random() < 0.5
        shift = (rng.uniform(-0.9, 0.9), rng.uniform(-0.9, 0.9))
        picture = place_plain(
            ImageOps.mirror(art) if flips else art,
            COLOURS[colour],
            scale=rng.uniform(0.78, 1.0),
            shift=shift,
        )
        yield picture, _row(thing, style, colour, caption_plain(thing, style, colour, rng))


def composed_plan(rng: random.Random) -> Iterator[tuple[str, str, str, bool]]:
    """(thing, scene or '' for a plain colour, face or '', small) of every composed picture."""
    for _ in range(5):
        yield "cactus", "desert", "", True
        yield "cactus", "desert", "", False
        yield "cactus", "desert", "happy", True
        yield "cactus", "desert", "happy", True
        yield "cactus", "desert", "happy", False
        yield "cactus", "", "happy", rng.random() < 0.4
        yield "cactus", "", "sad", rng.random() < 0.4
    for name in FACED:
        yield name, "", "happy", False
        yield name, "", rng.choice(("happy", "sad")), rng.random() < 0.5
        yield name, rng.choice(("desert", "meadow", "beach")), "happy", rng.random() < 0.5
    for scene, names in IN_SCENE.items():
        for name in _names(names):
            yield name, scene, "", rng.random() < 0.5


def composed_rows(
    things: dict[str, Thing], art: Art, held_out: set[tuple[str, str]], rng: random.Random
) -> Iterator[tuple[Image.Image, Row]]:
    """Pictures of small things, things in scenes and things with faces, in both styles."""
    for name, scene, face, small in composed_plan(rng):
        for style in STYLES:
            if (style, name) not in held_out:
                drawn = art[style, name]
                if face:
                    drawn = with_face(drawn, face, FACE_ANCHORS.get(name))
                yield _compose(things[name], style, drawn, scene, face, small, rng)


def _compose(
    thing: Thing,
    style: str,
    drawn: Image.Image,
    scene: str,
    face: str,
    small: bool,
    rng: random.Random,
) -> tuple[Image.Image, Row]:
    height = rng.uniform(0.36, 0.46) if small else rng.uniform(0.62, 0.78)
    if scene:
        ground, where = draw_scene(scene, rng), rng.choice(PLACES[scene])
        floats = scene in ("night sky", "sea")
        foot_y = 0.5 + height / 2 + rng.uniform(-0.08, 0.08) if floats else rng.uniform(0.84, 0.93)
    else:
        colour = choose_colours(drawn, 1, rng)[0]
        ground, where = (
            Image.new("RGB", (256, 256), COLOURS[colour]),
            f"on {with_article(colour)} background",
        )
        foot_y = 0.5 + height / 2
    foot = (0.5 + rng.uniform(-0.5, 0.5) * (0.9 - height), foot_y)
    picture = place_standing(drawn, ground, height=height, foot=foot)
    texts = caption_composed(thing, style, small=small, face=face, where=where, rng=rng)
    row = _row(thing, style, scene or colour, texts)
    return picture, row | {"composed": True, "face": face, "small": small}


def _row(thing: Thing, style: str, background: str, texts: list[str]) -> Row:
    captions = list(dict.fromkeys(texts))
    return {
        "thing": thing.name,
        "kind": thing.kind,
        "style": style,
        "background": background,
        "captions": captions,
    }


def write_references(out: Path, things: list[Thing], art: Art) -> None:
    """White pictures of all things in the three styles under eval/, listed in eval/index.jsonl."""
    rows = []
    for style in (*STYLES, "noto"):
        folder = out / "eval" / style.lower()
        folder.mkdir(parents=True, exist_ok=True)
        for thing in things:
            path = folder / f"{slug(thing.name)}.png"
            place_plain(art[style, thing.name], (255, 255, 255), scale=1.0, shift=(0, 0)).save(path)
            rows.append({"path": str(path.relative_to(out)), "thing": thing.name, "style": style})
    write_lines(out / "eval" / "index.jsonl", rows)


def write_training(out: Path, things: list[Thing], art: Art, seed: int) -> tuple[int, int]:
    """Pictures and captions for training, and the list of held-out pairs; returns both counts."""
    rng = random.Random(seed)
    held_out = choose_held_out(things, rng)
    rows: list[Row] = []
    kept_away: list[Row] = []
    (out / "images").mkdir(parents=True, exist_ok=True)

    def keep(picture: Image.Image, row: Row) -> None:
        path = f"images/{len(rows):05d}-{slug(row['thing'])}-{row['style'].lower()}.png"
        picture.save(out / path)
        rows.append({"path": path, **row})

    for thing in things:
        for style in STYLES:
            pairs = plain_rows(thing, style, art[style, thing.name], rng)
            if (style, thing.name) in held_out:
                path = f"eval/{style.lower()}/{slug(thing.name)}.png"
                kept_away.append({"path": path, **next(pairs)[1]})
                continue
            for picture, row in pairs:
                keep(picture, row)
    for picture, row in composed_rows({t.name: t for t in things}, art, held_out, rng):
        keep(picture, row)
    write_lines(out / "captions.jsonl", rows)
    write_lines(out / "held_out.jsonl", kept_away)
    return len(rows), len(kept_away)


def write_compositions(out: Path, art: Art, number: int, seed: int) -> int:
    """Composed pictures and their rows at the end of captions.jsonl; returns their number.

    No composition of the evaluation is among them, but for single things, nor a held-out pair.
    """
    rng = random.Random(f"compositions {seed}")
    kept_away = {plan.key for plan in questions() if plan.task != "single"}
    held_out = {(row["style"], row["thing"]) for row in read_lines(out / "held_out.jsonl")}
    rows = []
    for i, plan in enumerate(training_plans(number, rng, kept_away)):
        names = [THINGS.get(part.name, part.name) for part in plan.parts]
        styles = [s for s in STYLES if not any((s, name) in held_out for name in names)]
        if not styles:
            continue
        style = rng.choice(styles)
        picture, ground, shown = compose(plan, style, art, rng)
        path = f"images/c{i:05d}-{plan.task}-{style.lower()}.png"
        picture.save(out / path)
        texts = list(dict.fromkeys(layout_captions(plan, style, ground, shown, rng)))
        row: Row = {"path": path, "thing": names[0], "kind": "composition", "style": style}
        row |= {"background": ground, "captions": texts, "composed": True, "task": plan.task}
        rows.append(row)
    write_lines(out / "captions.jsonl", [*read_lines(out / "captions.jsonl"), *rows])
    return len(rows)


def write_questions(out: Path, things: list[Thing], art: Art) -> None:
    """What an evaluation asks, and the pictures that it names the parts of compositions by.

    Raises SystemExit for a synonym that a caption has.
    """
    captions = [text for row in read_lines(out / "captions.jsonl") for text in row["captions"]]
    held_out = read_lines(out / "held_out.jsonl")
    asked = things_asked(things, held_out) + synonyms_asked(SYNONYMS, things, captions)
    write_lines(out / "eval" / "prompts.jsonl", [*asked, *(q.question() for q in questions())])
    write_lines(out / "eval" / "vocabulary.jsonl", list(_vocabulary(out, art)))


def _vocabulary(out: Path, art: Art) -> Iterator[Row]:
    """Every part of compositions: things as they are and recoloured, solids in all colours."""
    folder = out / "eval" / "vocabulary"
    folder.mkdir(parents=True, exist_ok=True)
    for noun, name in THINGS.items():
        for style in (*STYLES, "noto"):
            path = f"eval/{style.lower()}/{slug(name)}.png"
            yield {"path": path, "thing": noun, "style": style}
    for noun in (*SOLIDS, *COLOURED):
        for colour in NAMED_COLOURS:
            for style in STYLES:
                drawn = art_of(Part(noun, colour), style, art)
                white = Image.new("RGB", (SIDE, SIDE), "white")
                path = f"eval/vocabulary/{slug(noun)}-{colour}-{style.lower()}.png"
                place_standing(drawn, white, height=0.9, foot=(0.5, 0.95)).save(out / path)
                yield {"path": path, "thing": noun, "style": style}


def main() -> None:
    """Read the command line and make the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of placements and captions")
    parser.add_argument("--composed", type=int, default=0, help="number of composed pictures")
    parser.add_argument("--questions-only", action="store_true", help="write eval/ alone")
    args = parser.parse_args()
    fetch(args.out / "packages")
    asked = [form for words, _ in synonyms(SYNONYMS) for form in forms(words)]
    things = read_things(args.out / "packages", LISTING, unsaid=asked)
    art = read_art(args.out / "packages", things)
    if not args.questions_only:
        written, held_out = write_training(args.out, things, art, args.seed)
        composed = write_compositions(args.out, art, args.composed, args.seed)
        print(
            f"{written} pictures of {len(things)} things, {composed} composed; "
            f"{held_out} pairs held out"
        )
    write_references(args.out, things, art)
    write_questions(args.out, things, art)


if __name__ == "__main__":
    main()
