"""`pixsigma generate`: prompts to pictures in files."""

from pathlib import Path

import typer

from pixsigma.cli import options


def generate(
    context: typer.Context,
    prompt: options.Prompt = None,
    prompts: options.PromptFile = None,
    model: options.Model = "mini",
    size: options.Size = None,
    aspect: options.Aspect = None,
    steps: options.Steps = 20,
    guidance: options.Guidance = None,
    sampler: options.Sampler = "dpm++2m",
    negative: options.Negative = "",
    seed: options.Seed = None,
    num: options.Num = 1,
    eta: options.Eta = 0.0,
    image: options.Image = None,
    mask: options.Mask = None,
    strength: options.Strength = None,
    extend: options.Extend = None,
    inpaint_crop: options.InpaintCrop = False,
    two_pass: options.TwoPass = False,
    tiled: options.Tiled = False,
    lora: options.Lora = None,
    control: options.Control = None,
    controlnet: options.ControlNet = None,
    again: options.Again = None,
    region: options.Region = None,
    guide: options.Guide = None,
    syntax: options.Syntax = "plain",
    long_prompts: options.LongPrompts = "truncate",
    style: options.StyleName = None,
    styles: options.StyleFile = None,
    out: options.Out = Path("outputs"),
    metadata: options.Metadata = True,
    sign: options.Sign = None,
    sign_key: options.SignKey = None,
    sign_time: options.SignTime = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    fast: options.Fast = False,
    quantize: options.Quantize = None,
    text_and_vae: options.TextAndVae = None,
    memory: options.Memory = None,
    decode: options.Decode = "auto",
    prompt_cache: options.PromptCache = "auto",
    clean: options.Clean = None,
    batch: options.Batch = 4,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw pictures from prompts, or from pictures and prompts."""
    flags = dict(locals())
    from pixsigma.cli.wishes import given, signing, wishes

    wished = wishes(flags, given(context))
    wished |= {"sign": signing(sign, sign_key, sign_time)}

    from pixsigma.cli.drawing import Job, draw_all  # brings torch, after the checks without it

    wished |= {"memory": memory, "prompt_cache": prompt_cache, "batch": batch}
    draw_all(Job(**wished, out=out, metadata=metadata, json=json, quiet=quiet))
