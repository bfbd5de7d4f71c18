"""Which layers 8 bits hurt: the error of one step with one kind, or one block, quantised alone.

Alone in 8 bits, that is, as `int8-fast` has them; `int8` has 16 in two halves.

    python benchmarks/sensitivity.py [--model mini] [--xl] [--quick]

On trained weights by default; `--xl` takes random ones of the XL/2 size. Says also what all of
them together cost, and the PSNR of finished pictures.
"""

from argparse import Namespace
from typing import Any

import torch
from common import Task, parser, random_transformer, step_of_ours

from pixsigma.config import TransformerConfig
from pixsigma.measuring import columns, psnr, relative_error, write_report
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.quantize import quantized
from pixsigma.weights.quantized import CPU_MODES

KINDS = (
    r"attn\.qkv", r"attn\.proj", r"cross_attn\.q_linear", r"cross_attn\.kv_linear",
    r"cross_attn\.proj", r"mlp\.fc1", r"mlp\.fc2",
)  # fmt: skip
TIMES = (950, 700, 400, 100)
PROMPTS = ("a red apple", "a lion, 3D", "a house on a yellow background", "a cactus in the desert")


def flags() -> Namespace:
    found = parser(__doc__ or "")
    found.add_argument("--model", default="mini")
    found.add_argument("--xl", action="store_true", help="random weights of the XL/2 size")
    found.add_argument("--layers", type=int, default=28, help="of --xl")
    return found.parse_args()


def alone(pattern: str) -> str:
    """What is kept where only layers of this pattern are quantised."""
    return rf"(?!blocks\.{pattern}$).*"


def errors(
    model: PixArtTransformer, keep: str | None, tasks: list[Task], mode: str = "int8-fast"
) -> list[float]:
    small = quantized(model, mode, keep=keep)
    return [
        relative_error(step_of_ours(small, task)(), step_of_ours(model, task)()) for task in tasks
    ]


def tasks_of(
    args: Namespace, pipe: PixArtSigmaPipeline | None, model: PixArtTransformer
) -> list[Task]:
    side = 256 if args.xl else model.config.sample_size * 8
    made = [Task.of(model.config, side, 20, seed) for seed in range(len(TIMES))]
    if pipe is None:
        return [Task(m.x, m.text, m.null, t) for m, t in zip(made, TIMES, strict=True)]
    null = pipe.encode([""])
    return [
        Task(m.x, pipe.encode([prompt]), null, t)
        for m, prompt, t in zip(made, PROMPTS, TIMES, strict=True)
    ]


def pictures(pipe: PixArtSigmaPipeline, steps: int) -> torch.Tensor:
    """Drawn from fixed seeds, (B, 3, H, W) in [0, 1]."""
    drawn = []
    for seed, prompt in enumerate(PROMPTS):
        *_, last = pipe.stream(prompt, seed=seed, num_inference_steps=steps)
        assert last.latents is not None
        drawn.append(pipe.decode(last.latents))
    return (torch.cat(drawn) / 2 + 0.5).clamp(0, 1)


def main() -> None:
    args = flags()
    pipe = None if args.xl else PixArtSigmaPipeline.from_pretrained(args.model)
    config = TransformerConfig(num_layers=args.layers)
    model = pipe.transformer if pipe else random_transformer(config)
    tasks = tasks_of(args, pipe, model)[: 1 if args.quick else None]
    rows = {f"all, {mode}": errors(model, None, tasks, mode) for mode in CPU_MODES}
    rows |= {kind: errors(model, alone(rf"\d+\.{kind}"), tasks) for kind in KINDS}
    blocks = range(0, model.config.num_layers, 4 if args.quick else 1)
    rows |= {f"block {i}": errors(model, alone(rf"{i}\..*"), tasks) for i in blocks}
    name = "random XL/2" if args.xl else args.model
    report: dict[str, Any] = {"model": name, "timesteps": TIMES, "errors": rows}
    if pipe is not None:
        steps = 4 if args.quick else 20
        full, report["psnr"] = pictures(pipe, steps), {}
        for mode in CPU_MODES:
            pipe.transformer = quantized(model, mode)
            drawn = pictures(pipe, steps)
            report["psnr"][mode] = [psnr(a, b) for a, b in zip(drawn, full, strict=True)]
    write_report(args.out / "sensitivity.json", report)
    print(
        columns(
            [{"in 8 bits": k, "mean": sum(v) / len(v), "worst": max(v)} for k, v in rows.items()]
        )
    )
    for mode, found in report.get("psnr", {}).items():
        print(f"PSNR of pictures, {mode}:", ", ".join(f"{value:.1f} dB" for value in found))


if __name__ == "__main__":
    main()
