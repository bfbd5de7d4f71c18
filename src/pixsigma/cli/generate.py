"""`pixsigma generate`: prompts to PNG files."""

from pathlib import Path
from typing import Any

from pixsigma.cli import options


def generate(
    prompt: options.Prompt = None,
    prompts: options.PromptFile = None,
    model: options.Model = "mini",
    size: options.Size = None,
    aspect: options.Aspect = None,
    steps: options.Steps = 20,
    guidance: options.Guidance = 4.5,
    sampler: options.Sampler = "dpm++2m",
    negative: options.Negative = "",
    seed: options.Seed = None,
    num: options.Num = 1,
    eta: options.Eta = 0.0,
    guide: options.Guide = None,
    syntax: options.Syntax = "plain",
    long_prompts: options.LongPrompts = "truncate",
    style: options.StyleName = None,
    styles: options.StyleFile = None,
    out: options.Out = Path("outputs"),
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    text_and_vae: options.TextAndVae = None,
    clean: options.Clean = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw pictures from prompts."""
    from pixsigma.cli.wishes import parse_aspect, steering_settings, wanted

    settings: dict[str, Any] = {
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "sampler": sampler,
        "seed": seed,
        "num_images": num,
        "clean_caption": clean,
        "eta": eta,
        **steering_settings(guide or [], syntax, long_prompts, style, styles),
    }
    requests = wanted(prompt or [], prompts, settings, size, aspect)
    shape = parse_aspect(aspect)

    from pixsigma.cli.drawing import Job, draw_all  # brings torch, after the checks without it

    job = Job(
        requests=requests,
        model=model,
        out=out,
        aspect=shape,
        device=device,
        dtype=dtype,
        text_and_vae=text_and_vae,
        json=json,
        quiet=quiet,
    )
    draw_all(job)
