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
Guidance = Annotated[
    float | None, typer.Option(help="How strongly the text leads; default: what suits the model.")
]
Sampler = Annotated[str, typer.Option(help="Such as dpm++2m, sa, euler, unipc.")]
Negative = Annotated[str, typer.Option(help="What to lead away from.")]
Seed = Annotated[int | None, typer.Option(help="Of the first picture; drawn when not given.")]
Num = Annotated[int, typer.Option("-n", "--num", help="Pictures a prompt.")]
Eta = Annotated[float, typer.Option(help="Share of fresh noise in a DDIM step.")]
Image = Annotated[str | None, typer.Option(metavar="FILE", help="A picture to begin from.")]
Mask = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="What of it to draw anew: white on black, in its size."),
]
Strength = Annotated[
    float | None,
    typer.Option(help="How far to leave the picture: 0 keeps it; default 0.6, under a mask 1."),
]
Extend = Annotated[
    str | None, typer.Option(metavar="left=256,…", help="Continue it by pixels on some sides.")
]
InpaintCrop = Annotated[
    bool, typer.Option("--inpaint-crop", help="Work on a part around the mask, in full resolution.")
]
TwoPass = Annotated[
    bool, typer.Option("--two-pass", help="Draw in the trained size, enlarge, refine in --size.")
]
Tiled = Annotated[
    bool, typer.Option("--tiled", help="Refine --two-pass or --image in tiles of the trained size.")
]
Again = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw this picture again from its settings.")
]
Metadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="Write the settings into the picture.")
]
Sign = Annotated[
    Path | None,
    typer.Option(metavar="CERTS.pem", help="Sign a C2PA manifest with this certificate chain."),
]
SignKey = Annotated[
    Path | None, typer.Option(metavar="KEY.pem", help="The certificate's private key.")
]
SignTime = Annotated[
    str | None, typer.Option(metavar="URL", help="An authority that tells the time of signing.")
]
Out = Annotated[Path, typer.Option(help="A folder, or a name that ends in .png, .jpg or .webp.")]
Lora = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE[:WEIGHT]", help="An adapter (LoRA and its kin); repeatable."),
]
Control = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND:HINT[:WEIGHT]",
        help="A hint to follow, such as edges:photo.png:0.8, also with ,ready ,start=0.1 ,end=0.6 "
        "behind it; picture:photo.png is an image prompt; repeatable.",
    ),
]
ControlNet = Annotated[
    list[str] | None,
    typer.Option(
        "--controlnet", metavar="[KIND=]FILE", help="What follows hints of a kind; repeatable."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")]
Fast = Annotated[bool, typer.Option("--fast", help="Leave out what changes little; see docs.")]
Quantize = Annotated[
    str | None,
    typer.Option(metavar="MODE", help="int8, int8-fast on a CPU; on GPUs fp8-weights and others."),
]
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
Region = Annotated[
    list[str] | None,
    typer.Option(metavar="BOX:TEXT", help="A part with its own text: 0,0,0.5,1:a cat; repeatable."),
]
Syntax = Annotated[str, typer.Option(help=r"plain, or weighted: (red:1.3), \[dawn:dusk:0.4], AND.")]
LongPrompts = Annotated[
    str, typer.Option(help="truncate, chunk or refuse what is beyond the model's limit.")
]
StyleName = Annotated[str | None, typer.Option(help="A named style; `pixsigma styles` lists them.")]
StyleFile = Annotated[Path | None, typer.Option(help="A TOML file with styles of your own.")]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Stay below this much memory, such as 4GB; else refuse."),
]
Decode = Annotated[
    str,
    typer.Option(
        help="whole, strips, strips-half, strips-spill or tiles; auto: the first of the exact "
        "ones that fits."
    ),
]
PromptCache = Annotated[
    str,
    typer.Option(
        metavar="DIR|off", help="Keeps what prompts were encoded to; auto: for large encoders."
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Pictures of several prompts drawn together.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a picture.")]
JsonOnce = Annotated[bool, typer.Option("--json", help="One JSON object.")]
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
    "image": "--image",
    "mask": "--mask",
    "strength": "--strength",
    "extend": "--extend",
    "loras": "--lora",
    "control": "--control",
    "regions": "--region",
    "guidance": "--guide",
    "prompt_syntax": "--syntax",
    "long_prompts": "--long-prompts",
    "style": "--style",
    "fast": "--fast",
}
