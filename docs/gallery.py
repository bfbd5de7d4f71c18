"""Draw docs/gallery.md: every feature a row, by `mini`, with fixed seeds, not picked.

    python docs/gallery.py [--out docs] [--only large,styles] [--control NET] [--picture NET]

The drawings of a row are one call of `draw_many`; edits begin from drawings of its own. Sizes are
shares of the side that the model was trained on. What the notes say was seen on the pictures of one
model, LOOKED_AT; for any other they are left out, and which ones is told: look at the pictures,
write the notes anew, and put the model's own mark there.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.Image import Resampling

from pixsigma import GenerationRequest, PixArtSigmaPipeline
from pixsigma.editing.opening import as_data
from pixsigma.evaluation.sheets import contact_sheet
from pixsigma.hints import edges
from pixsigma.requests import request_from
from pixsigma.weights.files import atomic_write

HERE = Path(__file__).parent
SHOWN, STEPS = 128, 12
"""Side of a picture on the page, and steps of a drawing, where a row says nothing else."""

LOOKED_AT = "daff34f30054"
"""The mark of the model whose pictures the notes speak of."""

APPLE, HOUSE, CAT = "a red apple, 3D", "a house in a meadow", "a cat on a blue background"
BEACH = "a boat on the beach"

Asked = dict[str, Any]
Cell = tuple[str, Asked | Image.Image]
"""What stands below a picture, and the picture or the settings that it is drawn with."""


@dataclass(frozen=True)
class Row:
    """One feature."""

    name: str
    title: str
    words: str
    command: str
    cells: Sequence[Cell]
    note: str = ""
    """What was seen: where mini does not show what a larger model would."""
    shown: int = SHOWN
    checks: Callable[[list[Image.Image]], str] | None = field(default=None, repr=False)
    """What is measured on the pictures of the row."""


def asked(prompt: str, seed: int = 1, **settings: Any) -> Asked:
    return {"prompt": prompt, "seed": seed, "num_inference_steps": STEPS, **settings}


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def mark_of(pipe: PixArtSigmaPipeline) -> str:
    """What tells one model's pictures from another's: weights, and the guidance that suits it."""
    digest = hashlib.sha256(str(pipe.default_guidance).encode())
    for network in (pipe.transformer, pipe.text_encoder.encoder, pipe.vae):
        for name, weight in sorted(network.state_dict().items()):
            digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def untouched(before: Image.Image, mask: Image.Image) -> Callable[[list[Image.Image]], str]:
    """Tells how many kept pixels differ from the input."""

    def told(pictures: list[Image.Image]) -> str:
        kept = np.asarray(mask) == 0
        differ = sum(
            int((np.asarray(each)[kept] != np.asarray(before)[kept]).any(axis=-1).sum())
            for each in pictures
            if each.mode == "RGB" and each.size == before.size
        )
        return f"Kept pixels that differ from the input in these results: {differ}."

    return told


# Rows, in the order of the page


def text_rows(side: int) -> list[Row]:
    prompts = [APPLE, "a lion, flat", "a cactus in the desert", "a whale on a yellow background"]
    wide, low = side * 5 // 4, side * 3 // 4
    shapes = [(side, side), (wide, low), (low, wide), (side // 2, side // 2)]
    return [
        Row(
            "text",
            "Text to picture",
            "A picture is its prompt, settings and seed. Captions like those that it was "
            "trained on suit `mini` best.",
            'pixsigma generate "a lion, flat" --seed 1',
            [(prompt, asked(prompt)) for prompt in prompts]
            + [(f"{APPLE}, seed 2", asked(APPLE, 2))],
        ),
        Row(
            "shapes",
            "Sizes and shapes",
            "Sides are multiples of 16, with `mini` of 32. These were in the making together, as "
            "all of a row on this page are: one call of `draw_many`.",
            f'pixsigma generate "a red car" --size {wide}x{low}',
            [(f"{w}x{h}", asked("a red car", 1, width=w, height=h)) for w, h in shapes],
            f"`mini` was trained on squares of {side} pixels last; other shapes bend its things.",
        ),
    ]


def picture_rows(made: dict[str, Image.Image], side: int) -> list[Row]:
    apple = made[APPLE]
    strengths = (0.3, 0.5, 0.7, 0.9)
    return [
        Row(
            "image",
            "Image to image",
            "The strength is the share of the steps that are taken from the input on.",
            'pixsigma generate "a lemon, 3D" --image apple.png --strength 0.7',
            [("the input", apple)]
            + [
                (f"a lemon, 3D: {s}", asked("a lemon, 3D", 3, image=as_data(apple), strength=s))
                for s in strengths
            ],
        ),
        Row(
            "variations",
            "Variations",
            "The same prompt and picture, another seed each.",
            'pixsigma generate "a house in a meadow" --image house.png --strength 0.6 -n 4',
            [("the input", made[HOUSE])]
            + [
                (f"seed {s}", asked(HOUSE, s, image=as_data(made[HOUSE]), strength=0.6))
                for s in (5, 6, 7, 8)
            ],
        ),
        *mask_rows(made, side),
    ]


def mask_rows(made: dict[str, Image.Image], side: int) -> list[Row]:
    cat, beach = made[CAT], made[BEACH]
    mask = box_mask(cat.size, (side // 2, 0, side - 1, side - 1))
    given: Asked = {"image": as_data(cat), "mask": as_data(mask)}
    more = side * 3 // 8
    sides = {"left": more, "right": more}
    return [
        Row(
            "inpaint",
            "Inpainting",
            "White of the mask is drawn anew; what is black stays to the last bit.",
            'pixsigma generate "a dog on a blue background" --image cat.png --mask mask.png',
            [("the input", cat), ("the mask", mask)]
            + [
                (f"{p}, seed {s}", asked(p, s, **given))
                for p, s in ((CAT, 4), ("a dog on a blue background", 4), (CAT, 5))
            ],
            "Half a thing is hard for `mini`: it was shown whole ones.",
            checks=untouched(cat, mask),
        ),
        Row(
            "extend",
            "Outpainting",
            "More canvas on any side; the picture itself keeps every pixel.",
            f'pixsigma generate "{BEACH}" --image beach.png --extend left={more},right={more}',
            [("the input", beach)]
            + [(f"seed {s}", asked(BEACH, s, image=as_data(beach), extend=sides)) for s in (1, 2)],
            "On such grounds the new canvas is mostly more of the same.",
        ),
    ]


def large_rows(side: int) -> list[Row]:
    size: Asked = {"width": 2 * side, "height": 2 * side}
    house = asked("a house on a yellow background", 2)
    tiled = size | {"two_pass": True, "tiled": True}
    return [
        Row(
            "large",
            "Above the trained size: two passes, tiles",
            "Twice the trained side. Two passes draw the picture small, enlarge and refine it; "
            "`--tiled` refines in overlapping tiles.",
            'pixsigma generate "a house on a yellow background" '
            f"--size {2 * side}x{2 * side} --two-pass --tiled",
            [
                (f"{side}x{side}", house),
                (f"{2 * side}x{2 * side} at once", house | size),
                ("two passes, 0.3", house | size | {"two_pass": True, "strength": 0.3}),
                ("tiled, 0.15", house | tiled | {"strength": 0.15}),
                ("tiled, 0.3", house | tiled | {"strength": 0.3}),
            ],
            "Drawn at once, the house falls apart. `mini` has no detail to add, and draws large "
            "pictures with a grid of specks, in one pass as in two. Tiles have none and leave no "
            "seams, but each reads the whole prompt: with more strength than a little, each draws "
            "its own house.",
            shown=192,
        )
    ]


def steering_rows() -> list[Row]:
    fish = asked("a fish", 3)
    family: dict[str, Asked] = {
        "none (1)": {"guidance_scale": 1.0},
        "3": {},
        "9": {"guidance_scale": 9.0},
        "9, rescale 0.7": {"guidance_scale": 9.0, "guidance": {"rescale": 0.7}},
        "9, apg, norm 2": {"guidance_scale": 9.0, "guidance": {"apg": True, "apg_norm": 2.0}},
        "interval .2 to .8": {"guidance": {"start": 0.2, "stop": 0.8}},
        "linear 1 to 8": {
            "guidance_scale": 1.0,
            "guidance": {"schedule": "linear", "end_scale": 8.0},
        },
        "CFG++ 0.6, ddim": {"guidance": {"cfgpp": 0.6}, "sampler": "ddim"},
        "PAG 2": {"guidance": {"pag": 2.0}},
        "SEG 2": {"guidance": {"seg": 2.0}},
    }
    samplers = ("dpm++2m", "sa", "unipc", "euler", "euler-a", "heun")
    return [
        Row(
            "guidance",
            "The guidance family",
            "How strongly the text leads, and what tames it: [steering.md](steering.md).",
            'pixsigma generate "a fish" --guidance 9 --guide rescale=0.7',
            [(name, fish | more) for name, more in family.items()],
            "On plain grounds a strong guidance has little to overdo: it roughens outlines and "
            "scales; none, an interval and CFG++ draw the smoothest fish.",
        ),
        Row(
            "samplers",
            "Samplers",
            "12 steps from the same noise. `sa` and `euler-a` add noise of their own; the others "
            "solve one equation.",
            'pixsigma generate "a fish" --steps 12 --sampler unipc',
            [(s, fish | {"sampler": s}) for s in samplers],
        ),
    ]


def language_rows(side: int) -> list[Row]:
    def told(prompt: str, seed: int = 1) -> Cell:
        return prompt, asked(prompt, seed, prompt_syntax="weighted")

    halves = [
        {"prompt": "an orange on a white background", "box": (0.0, 0.0, 0.5, 1.0)},
        {"prompt": "a green frog on a white background", "box": (0.5, 0.0, 1.0, 1.0)},
    ]
    ground = "a white background"
    wide = side * 3 // 2
    rocket = asked("a rocket, flat", 2, num_inference_steps=20)
    return [
        Row(
            "language",
            "Prompt language",
            "Weights of words, a change on the way, taking turns, and several texts at once.",
            'pixsigma generate "[a pumpkin:a cat:0.3]" --syntax weighted',
            [
                told("a (green:0) apple"),
                told("a (green:1.6) apple"),
                told("[a pumpkin:a cat:0.3]"),
                told("[a lion|a tiger]"),
                told("a fish AND a banana"),
                told("an apple AND:-1 red"),
            ],
            "Things that are drawn at once melt, and a negative weight tears the drawing apart.",
        ),
        Row(
            "regions",
            "Regional prompts",
            "Boxes or masks with texts of their own.",
            f'pixsigma generate "{ground}" --region "0,0,.5,1:an orange" '
            f'--region ".5,0,1,1:a green frog" --size {wide}x{side}',
            [
                (
                    f"seed {s}",
                    asked(ground, s, width=wide, height=side, regions=halves, guidance_scale=5.0),
                )
                for s in (1, 2, 3)
            ],
            "Each half gets its colour, hardly its thing; where they meet, `mini` melts the two.",
        ),
        Row(
            "styles",
            "Styles and negative prompts",
            "Named templates; yours go into a TOML file.",
            'pixsigma generate "a house" --style ink',
            [("none", asked("a house", 1))]
            + [(s, asked("a house", 1, style=s)) for s in ("ink", "clay", "pixel")]
            + [
                (
                    "style of one's own: 3D",
                    asked("a house", 1, style={"prompt": "{prompt}, 3D"}),
                ),
                ("not: blue", asked("a house", 1, negative_prompt="blue")),
            ],
            '`mini` knows two styles, "3D" and "flat", and nothing of ink, clay or pixels: such '
            "words lead it astray, the last so far that no house is left.",
        ),
        Row(
            "fast",
            "Shortcuts",
            "`--fast` leaves out what changes little.",
            'pixsigma generate "a rocket, flat" --fast',
            [
                ("20 exact steps", rocket),
                ("20 steps, --fast", rocket | {"fast": True}),
                ("8 exact steps", rocket | {"num_inference_steps": 8}),
            ],
        ),
    ]


def elsewhere(picture: Image.Image) -> Image.Image:
    """The same smaller and low on the left, where no prompt would put it."""
    side = picture.width
    canvas = Image.new("RGB", (side, side), picture.getpixel((0, 0)))
    smaller = picture.resize(2 * [side * 5 // 8], Resampling.LANCZOS)
    canvas.paste(smaller, (side // 32, side * 11 // 32))
    return canvas


def control_rows(made: dict[str, Image.Image], network: str | None) -> list[Row]:
    """With a ControlNet for edges of this model, which the package does not have."""
    if network is None:
        return []
    cells: list[Cell] = []
    for drawn_before, prompt in ((APPLE, "an orange, 3D"), (CAT, "a dog on a blue background")):
        picture = elsewhere(made[drawn_before])
        hint = {"kind": "edges", "hint": as_data(picture), "network": network}
        plain = asked(prompt, 6)
        cells += [
            (f"outlines of {drawn_before}", edges(picture)),
            (f"{prompt}, without", plain),
            (f"{prompt}, with", plain | {"control": [hint]}),
        ]
    return [
        Row(
            "control",
            "Hints",
            "A ControlNet leads by outlines, here of a drawing made smaller and moved. "
            "[control.md](control.md) tells how this one was trained.",
            'pixsigma generate "an orange, 3D" --control edges:apple.png --controlnet NET',
            cells,
            "The orange takes the apple's place, size and leaf, and the dog the cat's place and "
            "size; its legs and head are as rough as without.",
        )
    ]


def prompt_rows(made: dict[str, Image.Image], network: str | None) -> list[Row]:
    """With an image prompt for this model, which the package does not have."""
    if network is None:
        return []
    cells: list[Cell] = []
    for drawn_before in (APPLE, HOUSE):
        hint = {"kind": "picture", "hint": as_data(made[drawn_before]), "network": network}
        cells.append((drawn_before, made[drawn_before]))
        for prompt in ("", "on a yellow background, flat"):
            shown = asked(prompt, 6) | {"control": [hint]}
            cells.append((f"beside {prompt!r}" if prompt else "beside no words", shown))
    return [
        Row(
            "image-prompt",
            "Image prompts",
            "A picture stands beside the text and tells what there is. "
            "[control.md](control.md#image-prompts) tells how this one was trained.",
            'pixsigma generate "on a yellow background" --control picture:apple.png '
            "--controlnet NET",
            cells,
            "Beside no words colours come through and the apple's shape, of the house only a block "
            "on green. Beside words the ground is the text's, and colours are all that is left.",
        )
    ]


# Drawing and writing


def drawn(pipe: PixArtSigmaPipeline, wishes: Sequence[Asked]) -> list[Image.Image]:
    """The pictures of all wishes, in one call."""
    requests: list[GenerationRequest] = [request_from(**wish) for wish in wishes]
    return [step.images[0] for step in pipe.draw_many(requests, at_once=16)]


def sheet(row: Row, pictures: Sequence[Image.Image]) -> Image.Image:
    """The row as one picture with captions; nothing is stretched."""
    columns = 6 if row.shown == SHOWN else 5
    cells = []
    for picture in pictures:
        cell = Image.new("RGB", (row.shown, row.shown), "white")
        shown = picture.convert("RGB")
        shown.thumbnail((row.shown, row.shown), Resampling.LANCZOS)
        cell.paste(shown, ((row.shown - shown.width) // 2, (row.shown - shown.height) // 2))
        cells.append(cell)
    texts = [caption for caption, _ in row.cells]
    marks = [None] * len(cells)
    return contact_sheet(cells, texts, marks, side=row.shown, columns=columns)


def section(row: Row, pictures: list[Image.Image], looked_at: bool) -> str:
    parts = [f"## {row.title}", row.words, f"![{row.title}](images/gallery/{row.name}.jpg)"]
    parts.append(f"```sh\n{row.command}\n```")
    if row.checks is not None:
        parts.append(row.checks(pictures))
    if row.note and looked_at:
        parts.append(f"*{row.note}*")
    return "\n\n".join(parts)


HEAD = """# Gallery

What each feature does, drawn by `mini`, the small model inside the package, with the seeds that
stand here and none picked, 12 steps each where nothing else is said. `python docs/gallery.py`
draws the page again. `mini` draws squares of {side} pixels and was made of simple pictures; where
that is too little to show an effect, the row says so. Large ones are shown reduced. Commands name
the features; exact settings are in the script. Rows of hints and of image prompts need
networks that are not in the package (`--control NET --picture NET`).
"""

NOT_LOOKED_AT = """
No one has written yet what these pictures show and what they do not.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the page")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--control", help="a ControlNet for edges: a row more")
    parser.add_argument("--picture", help="an image prompt: a row more")
    parser.add_argument("--only", default="", help="names of rows, with commas; no page then")
    args = parser.parse_args()
    only = {name for name in args.only.split(",") if name}
    pipe = PixArtSigmaPipeline.from_pretrained(args.model)
    side, looked_at = max(pipe.default_size), mark_of(pipe) == LOOKED_AT
    inputs = (APPLE, HOUSE, CAT, BEACH)
    made = dict(zip(inputs, drawn(pipe, [asked(prompt) for prompt in inputs]), strict=True))
    rows = [*text_rows(side), *picture_rows(made, side), *large_rows(side)]
    rows += [*control_rows(made, args.control), *prompt_rows(made, args.picture)]
    rows += [*steering_rows(), *language_rows(side)]
    rows = [row for row in rows if not only or row.name in only]
    folder = args.out / "images" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    page = [HEAD.format(side=side).rstrip() + ("" if looked_at else NOT_LOOKED_AT.rstrip())]
    for row in rows:
        found = iter(drawn(pipe, [what for _, what in row.cells if isinstance(what, dict)]))
        cells = [next(found) if isinstance(what, dict) else what for _, what in row.cells]
        sheet(row, cells).save(folder / f"{row.name}.jpg", quality=88, optimize=True)
        page.append(section(row, cells, looked_at))
        print(f"{row.name}: {len(cells)} pictures", flush=True)
    if not only:
        with atomic_write(args.out / "gallery.md") as temp:
            temp.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.jpg"))}
    print(json.dumps(sizes), sum(sizes.values()), "bytes")
    if not looked_at:
        noted = ", ".join(row.name for row in rows if row.note)
        print(f"notes left out, as they are of another model than {mark_of(pipe)}: {noted}")


if __name__ == "__main__":
    main()
