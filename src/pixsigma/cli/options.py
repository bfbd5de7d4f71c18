"""The flags of `pixsigma generate`, with their help."""

from pathlib import Path
from typing import Annotated

import typer

Prompt = Annotated[
    list[str] | None, typer.Argument(help="What to draw; several make several pictures.")
]
PromptFile = Annotated[
    Path | None,
    typer.Option(help="A file: one prompt a line, or JSON lines with settings of their own."),
]
Model = Annotated[
    str,
    typer.Option(help="mini, a preset, a folder, a .pth, a .safetensors or a hub name."),
]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="In pixels, multiples of 16.")]
Aspect = Annotated[
    str | None, typer.Option(metavar="W:H", help="Shape, at about the model's native area.")
]
Steps = Annotated[int, typer.Option(help="Denoising steps.")]
Guidance = Annotated[float, typer.Option(help="How strongly the text leads.")]
Sampler = Annotated[str, typer.Option(help="Such as dpm++2m, sa, euler, unipc.")]
Negative = Annotated[str, typer.Option(help="What to lead away from.")]
Seed = Annotated[int | None, typer.Option(help="Of the first picture; drawn when not given.")]
Num = Annotated[int, typer.Option("-n", "--num", help="Pictures a prompt.")]
Eta = Annotated[float, typer.Option(help="Share of fresh noise in a DDIM step.")]
Out = Annotated[Path, typer.Option(help="A folder, or a name that ends in .png.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")]
TextAndVae = Annotated[
    str | None, typer.Option(help="Where text encoder and autoencoder of a bare file are.")
]
Clean = Annotated[
    bool | None, typer.Option(help="Clean the prompts first; default: as the model was trained")
]
Guide = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Such as rescale=0.7, pag=3, start=0.2; repeatable."),
]
Syntax = Annotated[str, typer.Option(help="plain, or weighted: (red:1.3), [a:b:0.4], AND.")]
LongPrompts = Annotated[
    str, typer.Option(help="truncate, chunk or refuse what is beyond the model's limit.")
]
StyleName = Annotated[str | None, typer.Option(help="A named style; `pixsigma styles` lists them.")]
StyleFile = Annotated[Path | None, typer.Option(help="A TOML file with styles of your own.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a picture.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the files' names.")]

# the words that a person knows a request's fields by
FLAGS = {
    "prompt": "the prompt",
    "negative_prompt": "--negative",
    "width": "the width in --size",
    "height": "the height in --size",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "sampler": "--sampler",
    "seed": "--seed",
    "num_images": "-n",
    "eta": "--eta",
    "guidance": "--guide",
    "prompt_syntax": "--syntax",
    "long_prompts": "--long-prompts",
    "style": "--style",
}
