"""Draw every thing that mini was taught, score the drawings, and lay out a contact sheet.

    python recipes/mini/draw.py MODEL DATA OUT [--limit 64] [--guidance 4.5] [--size 128]

Writes OUT/*.png, OUT/pictures.jsonl, OUT/sheet.png and prints the retrieval score. The seed of a
thing is its place in the list, so sheets of two models can be laid side by side.
"""

import argparse
import json
from pathlib import Path

import torch
from evaluate import retrieval
from PIL import Image

from pixsigma import PixArtSigmaPipeline

BATCH = 16


def things_of(data: Path) -> dict[str, str]:
    """Thing to its shortest plain caption."""
    rows = [json.loads(line) for line in (data / "captions.jsonl").read_text().splitlines()]
    plain = [row for row in rows if not row.get("composed")]
    return {row["thing"]: row["captions"][0] for row in plain}


def draw(
    pipe: PixArtSigmaPipeline, prompts: list[str], args: argparse.Namespace
) -> list[Image.Image]:
    """One picture a prompt, the seed of each its place in the list."""
    pictures: list[Image.Image] = []
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        output = pipe(
            prompt_embeds=(text := pipe.encode(batch)).embeddings,
            prompt_attention_mask=text.mask,
            negative_prompt_embeds=(null := pipe.encode([""] * len(batch))).embeddings,
            negative_prompt_attention_mask=null.mask,
            height=args.size,
            width=args.size,
            guidance_scale=args.guidance,
            num_inference_steps=args.steps,
            generator=[torch.Generator().manual_seed(first + k) for k in range(len(batch))],
            use_resolution_binning=False,
        )
        pictures += output.images
        print(f"\r{len(pictures)}/{len(prompts)}", end="", flush=True)
    print()
    return pictures


def sheet(pictures: list[Image.Image], columns: int, side: int = 128) -> Image.Image:
    """A contact sheet, row by row."""
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * side, rows * side), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture.resize((side, side)), (i % columns * side, i // columns * side))
    return page


def main() -> None:
    """Parse, draw, score, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="only so many things, evenly spread")
    parser.add_argument("--prompts", type=Path, help="draw these lines instead, without a score")
    parser.add_argument("--behind", default="", help='such as "on a white background"')
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = PixArtSigmaPipeline.from_pretrained(args.model)
    if args.prompts:
        prompts = args.prompts.read_text().splitlines()
        sheet(draw(pipe, prompts, args), 8).save(args.out / "sheet.png")
        return
    captions = things_of(args.data)
    things = sorted(captions)
    things = things[:: max(1, len(things) // (args.limit or len(things)))]
    pictures = draw(pipe, [f"{captions[thing]} {args.behind}".strip() for thing in things], args)
    with (args.out / "pictures.jsonl").open("w") as index:
        for i, (thing, picture) in enumerate(zip(things, pictures, strict=True)):
            picture.save(args.out / f"{i:03}.png")
            index.write(json.dumps({"path": f"{i:03}.png", "thing": thing}) + "\n")
    sheet(pictures, 16, 96).save(args.out / "sheet.png")
    print(retrieval(list(zip(pictures, things, strict=True)), args.data))


if __name__ == "__main__":
    main()
