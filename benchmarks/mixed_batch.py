"""Requests that are not alike: together, one by one, and in diffusers sorted by hand, on mini.

    python benchmarks/mixed_batch.py [--lists alike,sizes,mixed] [--num 8] [--side 256] [--quick]

Three lists: `alike` differs in prompt and seed, `sizes` in size too, `mixed` in steps and guidance
as well. By hand means what diffusers can batch: requests with equal size, steps and guidance, texts
padded. By turns means `draw_many` with no two sizes in one batch, which tells what packing them
gains. All draw whole pictures from the same noise. In the same run every picture's latents are
compared with those drawn alone (at most 1e-4 is promised), and its pixels with diffusers'. `batch`
tells what the network gains by more rows of one size.
"""

import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import parser, positive

import pixsigma
from pixsigma import GenerationRequest, PixArtSigmaPipeline, Step, gathering
from pixsigma.measuring import Timing, bars, columns, interleaved, relative_error, write_report

MINI = Path(pixsigma.__file__).parent / "mini"
TOGETHER, TURNS, ALONE = "draw_many", "draw_many, sizes by turns", "one by one"
BY_HAND, THEIRS_ALONE = "diffusers, sorted by hand", "diffusers, one by one"

# diffusers makes prompts lower case, ours takes them as they are: so no capitals here
THINGS = (
    "a red apple", "a lion, flat", "a house on a yellow background", "a cactus in the desert",
    "a blue car, flat", "a fish in the sea, drawn with a few soft colours", "a tree in a meadow",
    "a smiling face", "a rocket", "a small boat on the beach at the end of a long day",
    "a whale on a light blue background", "a guitar, flat",
)  # fmt: skip
SIZES = ((1, 1), (0.75, 0.75), (1, 0.75), (0.75, 1))
"""As shares of --side."""
LISTS = ("alike", "sizes", "mixed")
STEPS, SCALES = (10, 14, 20), (3.0, 4.5, 6.0)


def requests_of(kind: str, num: int, side: int) -> list[GenerationRequest]:
    """The list of this name."""
    found = []
    for k in range(num):
        width, height = SIZES[k % len(SIZES)] if kind != "alike" else (1, 1)
        mixed = kind == "mixed"
        found.append(
            GenerationRequest(
                prompt=THINGS[k % len(THINGS)],
                seed=100 + k,
                width=int(width * side),
                height=int(height * side),
                num_inference_steps=STEPS[k % len(STEPS)] if mixed else 14,
                guidance_scale=SCALES[k // 2 % len(SCALES)] if mixed else 4.5,
            )
        )
    return found


def alone(pipe: PixArtSigmaPipeline, requests: Sequence[GenerationRequest]) -> list[Step]:
    """Each request by itself."""
    return [list(pipe.stream(request))[-1] for request in requests]


def groups(requests: Sequence[GenerationRequest]) -> list[list[int]]:
    """Places of what one call of diffusers can draw."""
    found: dict[Any, list[int]] = defaultdict(list)
    for k, r in enumerate(requests):
        found[r.width, r.height, r.num_inference_steps, r.guidance_scale].append(k)
    return list(found.values())


def in_diffusers(
    theirs: Any, requests: Sequence[GenerationRequest], batches: Sequence[Sequence[int]]
) -> list[Any]:
    """The pictures, (height, width, 3) in [0, 1]."""
    found: dict[int, Any] = {}
    for places in batches:
        first = requests[places[0]]
        images = theirs(
            [requests[k].prompt for k in places],
            generator=[torch.Generator().manual_seed(requests[k].seed or 0) for k in places],
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            height=first.height,
            width=first.width,
            use_resolution_binning=False,
            clean_caption=False,
            output_type="np",
        ).images
        found |= dict(zip(places, images, strict=True))
    return [found[k] for k in range(len(requests))]


def errors(
    together: Sequence[Step], single: Sequence[Step], theirs: Sequence[Any]
) -> dict[str, float]:
    """The worst picture: latents against those alone, pixels in [0, 1] against diffusers."""
    latents = [
        relative_error(a.latents, b.latents)
        for a, b in zip(together, single, strict=True)
        if a.latents is not None and b.latents is not None
    ]
    pixels = [
        float(np.abs(np.asarray(step.images[0]) / 255 - other).max())
        for step, other in zip(together, theirs, strict=True)
    ]
    return {"latents_to_alone": max(latents), "pixels_to_diffusers": max(pixels)}


@contextmanager
def counted(layer: torch.nn.Linear) -> Iterator[list[int]]:
    """The tokens of every call of a layer, which no busy machine can blur."""
    tokens: list[int] = []
    hook = layer.register_forward_pre_hook(
        lambda _, given: tokens.append(given[0].numel() // given[0].shape[-1])
    )
    try:
        yield tokens
    finally:
        hook.remove()


def by_turns(pipe: PixArtSigmaPipeline, requests: Sequence[GenerationRequest]) -> list[Step]:
    """`draw_many`, but no batch holds two sizes."""
    with patch.object(gathering, "pays", lambda network, x: False):
        return pipe.draw_many(requests, at_once=len(requests))


def cpu_timed(work: Callable[[], Any], spent: list[float]) -> None:
    """Do the work; `spent` gets the CPU's seconds, of which a busy machine takes fewer away."""
    began = time.process_time()
    work()
    spent.append(time.process_time() - began)


def measured(
    pipe: PixArtSigmaPipeline, theirs: Any, kind: str, args: Namespace
) -> tuple[dict[str, Any], dict[str, Timing]]:
    """Times, ratios and errors of one list."""
    requests = requests_of(kind, args.num, args.side)
    single = [[k] for k in range(len(requests))]
    variants: dict[str, Callable[[], Any]] = {
        BY_HAND: lambda: in_diffusers(theirs, requests, groups(requests)),
        THEIRS_ALONE: lambda: in_diffusers(theirs, requests, single),
        ALONE: lambda: alone(pipe, requests),
        TURNS: lambda: by_turns(pipe, requests),
        TOGETHER: lambda: pipe.draw_many(requests, at_once=args.num),
    }
    ours = pipe.transformer.blocks[0].attn.qkv
    layers = {TOGETHER: ours, TURNS: ours, ALONE: ours}
    layers[BY_HAND] = theirs.transformer.transformer_blocks[0].attn1.to_q
    drawn, calls = {}, {}
    for name, layer in layers.items():
        with counted(layer) as calls[name]:
            drawn[name] = variants[name]()
    error = errors(drawn[TOGETHER], drawn[ALONE], drawn[BY_HAND])
    spent: dict[str, list[float]] = {name: [] for name in variants}
    timed = {name: partial(cpu_timed, work, spent[name]) for name, work in variants.items()}
    times = interleaved(timed, args.rounds, warm=0)
    rows = {
        name: {
            **taken.told(),
            "cpu_seconds": spent[name],
            "pictures_a_second": len(requests) / taken.median,
            "faster": times[BY_HAND].over(taken).told(),
        }
        for name, taken in times.items()
    }
    told = {name: {"calls": len(n), "tokens_a_call": sum(n) / len(n)} for name, n in calls.items()}
    summary = {"groups_by_hand": len(groups(requests)), "errors": error, "network": told}
    return summary | {"variants": rows}, times


@torch.no_grad()
def by_batch(pipe: PixArtSigmaPipeline, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds a guided picture and step of the network alone, by pictures in the batch."""
    network, found = pipe.transformer, {}
    texts = [network.read(pipe.encode([text]).embeddings) for text in ("", "a red apple")]
    times = network.embed(torch.tensor([500.0]))
    for side in (192, 256):
        steps = {}
        for num in (1, 2, 4, 8):
            x = torch.randn(2 * num, 4, *2 * [side // pipe.factor])
            steps[str(num)] = lambda x=x: network(x, times, texts, variance=False)
        taken = interleaved(steps, rounds)
        found[f"{side}px"] = {num: each.median / int(num) for num, each in taken.items()}
    return found


def main() -> None:
    found = parser(__doc__ or "", rounds=5)
    found.add_argument("--lists", default=",".join(LISTS))
    found.add_argument("--num", type=positive, default=8, help="pictures in a list")
    found.add_argument("--side", type=int, default=256, help="of the largest pictures, in pixels")
    args = found.parse_args()
    if unknown := set(args.lists.split(",")) - set(LISTS):
        found.error(f"lists are {', '.join(LISTS)}; got {', '.join(sorted(unknown))}")
    if args.quick:
        args.num, args.rounds, args.lists = 3, 1, "mixed"
    from diffusers import PixArtSigmaPipeline as Theirs

    load: Any = Theirs.from_pretrained
    theirs = load(MINI).to(torch.float32)
    theirs.set_progress_bar_config(disable=True)
    pipe = PixArtSigmaPipeline.from_pretrained("mini")
    report: dict[str, Any] = {
        "num": args.num,
        "batch": by_batch(pipe, 3 * args.rounds),
        "lists": {},
    }
    print("seconds a picture and step of the network, by pictures in a batch:", report["batch"])
    ratios: dict[str, dict[str, Timing]] = {}
    for kind in args.lists.split(","):
        told, times = measured(pipe, theirs, kind, args)
        report["lists"][kind] = told
        ratios[kind] = {name: times[BY_HAND].over(each) for name, each in times.items()}
        print(f"\n{kind}: {told['groups_by_hand']} groups by hand; {told['errors']}")
        print(told["network"])
        print(columns([row_of(name, row) for name, row in told["variants"].items()]))
        write_report(args.out / "mixed_batch.json", report)
    title = f"{args.num} whole pictures of mini that are not alike"
    label = "times as fast as diffusers sorted by hand"
    bars(args.out / "mixed_batch.png", ratios, title=title, label=label)
    if any(each["errors"]["latents_to_alone"] > 1e-4 for each in report["lists"].values()):
        raise SystemExit("a picture differs from the one drawn alone by more than 1e-4")


def row_of(name: str, row: dict[str, Any]) -> dict[str, Any]:
    ratio = row["faster"]
    return {
        "variant": name,
        "seconds": row["median"],
        "quartiles": f"{row['low']:.3g} to {row['high']:.3g}",
        "CPU seconds": median(row["cpu_seconds"]),
        "pictures/s": row["pictures_a_second"],
        "times as fast": f"{ratio['median']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})",
    }


if __name__ == "__main__":
    main()
