"""`pixsigma generate`: prompts to PNG files."""

from pathlib import Path
from typing import Annotated, Any

import typer

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
}


def generate(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to draw; several make several pictures.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file: one prompt a line, or JSON lines with settings of their own."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="mini, a preset, a folder, a .pth, a .safetensors or a hub name."),
    ] = "mini",
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="In pixels, multiples of 16.")
    ] = None,
    aspect: Annotated[
        str | None, typer.Option(metavar="W:H", help="Shape, at about the model's native area.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="How strongly the text leads.")] = 4.5,
    sampler: Annotated[str, typer.Option(help="Such as dpm++2m, sa, euler, unipc.")] = "dpm++2m",
    negative: Annotated[str, typer.Option(help="What to lead away from.")] = "",
    seed: Annotated[
        int | None, typer.Option(help="Of the first picture; drawn when not given.")
    ] = None,
    num: Annotated[int, typer.Option("-n", "--num", help="Pictures a prompt.")] = 1,
    eta: Annotated[float, typer.Option(help="Share of fresh noise in a DDIM step.")] = 0.0,
    out: Annotated[Path, typer.Option(help="A folder, or a name that ends in .png.")] = Path(
        "outputs"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")] = "auto",
    text_and_vae: Annotated[
        str | None, typer.Option(help="Where text encoder and autoencoder of a bare file are.")
    ] = None,
    clean: Annotated[
        bool | None, typer.Option(help="Clean the prompts first; default: as the model was trained")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a picture.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the files' names.")] = False,
) -> None:
    """Draw pictures from prompts."""
    from pixsigma.cli.drawing import Job, draw_all
    from pixsigma.cli.wishes import parse_pair, wanted

    settings: dict[str, Any] = {
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "sampler": sampler,
        "seed": seed,
        "num_images": num,
        "clean_caption": clean,
        "eta": eta,
    }
    job = Job(
        requests=wanted(prompt or [], prompts, settings, size, aspect),
        model=model,
        out=out,
        aspect=parse_pair(aspect, ":", "--aspect") if aspect else None,
        device=device,
        dtype=dtype,
        text_and_vae=text_and_vae,
        json=json,
        quiet=quiet,
    )
    draw_all(job)
