r"""One step with guidance of the XL/2 size, ours against diffusers in one run.

    python benchmarks/step.py --sizes 256,512               # some seven minutes on two cores
    python benchmarks/step.py --sizes 1024 --layers 7 --rounds 3          # a few minutes more
    python benchmarks/step.py --sizes 256 --rounds 3 --variants \
        "diffusers eager,diffusers compiled,ours,ours compiled"           # compiling: minutes each
    python benchmarks/step.py --quick

Random weights, one set for all. Ratios hardly depend on the number of layers, seconds do.
Every variant is compared with diffusers' eager fp32, or with the first where that is left out. The
share of the peak is that of the best large fp32 product of the same round. Freed memory is kept in
our steps, as when drawing, and not in those of diffusers.
"""

from argparse import Namespace
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
from common import Task, in_diffusers, parser, random_transformer, step_of_diffusers, step_of_ours
from common import useful_flops as flops_of
from torch import Tensor

from pixsigma.config import TransformerConfig
from pixsigma.measuring import (
    Timing,
    bars,
    columns,
    gemm_peak,
    interleaved,
    relative_error,
    write_report,
)
from pixsigma.pages import give_back_pages, kept_pages
from pixsigma.quantize import quantized

BASE = "diffusers eager"
INT8 = {"ours int8": "int8", "ours int8-fast": "int8-fast"}
BFLOAT16 = "ours bfloat16"
"""All of the network in bf16, as `--dtype bf16` has it: residuals and norms too."""
PEAK = "float32 product"
KEPT = 2**27
"""Numbers in 512 MiB, more than what a step at 1024px frees."""
FRESH = "ours fresh pages"
"""Ours where freed memory goes back to the system, as diffusers' does."""
VARIANTS = (BASE, "diffusers compiled", "ours", "ours compiled", *INT8, BFLOAT16, FRESH)


def flags() -> Namespace:
    found = parser(__doc__ or "", rounds=5)
    found.add_argument("--sizes", default="256,512,1024", help="sides in pixels, with commas")
    found.add_argument("--tokens", type=int, default=20, help="of the prompt")
    found.add_argument("--layers", type=int, default=28, help="fewer for a short run")
    found.add_argument(
        "--variants", default=f"{BASE},ours,{','.join(INT8)},{BFLOAT16}", help=", ".join(VARIANTS)
    )
    args = found.parse_args()
    args.sizes = [int(side) for side in args.sizes.split(",")]
    args.variants = [name.strip() for name in args.variants.split(",")]
    if unknown := set(args.variants) - set(VARIANTS):
        found.error(f"variants are {', '.join(VARIANTS)}; got {', '.join(unknown)}")
    args.base = BASE if BASE in args.variants else args.variants[0]
    if args.quick:
        args.sizes, args.rounds, args.layers = [64, 128], 2, 2
    return args


def config_of(args: Namespace) -> TransformerConfig:
    config = TransformerConfig(num_layers=args.layers)
    return replace(config, num_attention_heads=4, caption_channels=64) if args.quick else config


def compiled(network: torch.nn.Module) -> torch.nn.Module:
    """The same, compiled when first called."""
    return cast(torch.nn.Module, torch.compile(network))


def networks(args: Namespace) -> dict[str, torch.nn.Module]:
    """Variant to its network; all look at one set of weights but for the quantised one."""
    ours = random_transformer(config_of(args))
    found: dict[str, torch.nn.Module] = {"ours": ours, FRESH: ours}
    if any("diffusers" in name for name in args.variants):
        found[BASE] = in_diffusers(ours)
        found["diffusers compiled"] = compiled(found[BASE])
    if "ours compiled" in args.variants:
        found["ours compiled"] = compiled(ours)
    if BFLOAT16 in args.variants:
        found[BFLOAT16] = deepcopy(ours).to(torch.bfloat16)
    found |= {name: quantized(ours, mode) for name, mode in INT8.items() if name in args.variants}
    return {name: found[name] for name in args.variants}


def step_of(name: str, network: torch.nn.Module, task: Task) -> Callable[[], Tensor]:
    if "diffusers" in name:
        return step_of_diffusers(network, task)
    # the compiled module has no `read`; its parts are those of the original
    step = step_of_ours(network, task)
    return kept_pages()(step) if keeps(name) else step


def keeps(name: str) -> bool:
    """Whether a variant keeps freed memory from step to step."""
    return "ours" in name and name != FRESH


def settle(name: str) -> None:
    """Memory as a step of this variant finds it within a drawing, though others ran before it."""
    if keeps(name):
        with kept_pages():
            torch.ones(KEPT)
    else:
        give_back_pages()


def measure(args: Namespace, found: dict[str, torch.nn.Module], side: int) -> dict[str, Any]:
    """Times, ratios and errors at one size."""
    config = config_of(args)
    task = Task.of(config, side, args.tokens)
    steps = {name: step_of(name, network, task) for name, network in found.items()}
    outputs = {}
    for name, step in steps.items():
        print(f"{side}px, {name}", flush=True)
        outputs[name] = step()
    expected = outputs[args.base]
    peaks: list[float] = []
    watched = steps | {PEAK: lambda: peaks.append(gemm_peak(512 if args.quick else 2048))}
    times = interleaved(watched, args.rounds, warm=0, before=settle)
    base = times[args.base]
    flops = flops_of(config, side, args.tokens)
    rows = {
        name: {
            **times[name].told(),
            "faster": base.over(times[name]).told(),
            "error": relative_error(outputs[name], expected),
            "gflops": flops / times[name].median / 1e9,
            "share": Timing(
                tuple(
                    flops / seconds / peak / 1e9
                    for seconds, peak in zip(times[name].seconds, peaks, strict=True)
                )
            ).told(),
        }
        for name in steps
    }
    del times[PEAK]
    return {"flops": flops, "peak_gflops": peaks, "variants": rows, "times": times}


def main() -> None:
    args = flags()
    found = networks(args)
    sizes: dict[int, Any] = {}
    ratios: dict[str, dict[str, Any]] = {}
    for side in args.sizes:
        result = measure(args, found, side)
        times: dict[str, Timing] = result.pop("times")
        sizes[side] = result
        base = times[args.base]
        ratios[f"{side}px"] = {name: base.over(times[name]) for name in times}
        print(f"\n{side}px")
        low, high = min(result["peak_gflops"]), max(result["peak_gflops"])
        print(f"float32 products: {low:.0f} to {high:.0f} GFLOP/s at best")
        print(columns([row_of(name, row) for name, row in result["variants"].items()]))
        # after every size, since a long run may be stopped
        write_report(
            args.out / "step.json",
            {"tokens": args.tokens, "layers": args.layers, "sizes": sizes},
        )
    bars(
        args.out / "step.png",
        ratios,
        title=f"One guided step, {args.layers} layers of XL/2, {args.tokens} tokens",
        label=f"times as fast as {args.base}",
    )
    print(f"\n{args.out / 'step.json'}, {args.out / 'step.png'}")


def row_of(name: str, row: dict[str, Any]) -> dict[str, object]:
    return {
        "variant": name,
        "seconds": row["median"],
        "quartiles": f"{row['low']:.3g} to {row['high']:.3g}",
        "times as fast": row["faster"]["median"],
        "error": f"{row['error']:.1e}",
        "share of peak": f"{row['share']['median']:.0%}",
    }


if __name__ == "__main__":
    main()
