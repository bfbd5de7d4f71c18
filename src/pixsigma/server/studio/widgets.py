"""The widgets of a wish: what is asked first, and what is folded away."""

import json
from typing import Any

import gradio as gr

from pixsigma.diffusion.samplers import SAMPLERS
from pixsigma.server.limits import UPLOADS
from pixsigma.server.service import Service
from pixsigma.server.studio import wishes
from pixsigma.server.studio.canvas import make_canvas
from pixsigma.server.studio.drawing import any_seed
from pixsigma.server.studio.wiring import QUIET, Widgets
from pixsigma.styles import styles

PROMPTS = {
    "mini": (
        *("a red apple", "a lion, 3D", "a whale on a yellow background", "a pizza, flat"),
        *("a rocket on a light blue background", "an owl, 3D"),
    ),
    "": (
        "a small cactus with a happy face in the Sahara desert",
        "a lighthouse on a cliff at dusk, long exposure",
        "a red fox asleep in autumn leaves",
    ),
}
"""Prompts to begin with, by model; the last for any other."""


def asking(service: Service) -> Widgets:
    """The prompt, prompts to begin with, and the buttons."""
    w: Widgets = {}
    model = next(iter(service.pipes))
    w["prompt"] = gr.Textbox(
        label="What shall it be?",
        placeholder="a red apple",
        lines=1,
        max_lines=6,
        autofocus=True,
        elem_id="prompt",
        max_length=service.limits.max_prompt,
    )
    with gr.Row(elem_id="chips"):
        for text in PROMPTS.get(model, PROMPTS[""]):
            chip = gr.Button(text, size="sm", min_width=0, elem_classes="chip")
            chip.click(None, None, w["prompt"], js=f"() => {json.dumps(text)}", **QUIET)
    with gr.Row(elem_id="go"):
        w["draw"] = gr.Button("Draw", variant="primary", elem_id="draw", scale=3, min_width=120)
        w["stop"] = gr.Button("Stop", elem_id="stop", interactive=False, scale=1, min_width=80)
    w["sure"] = gr.Button("Draw anyway", variant="stop", elem_id="sure", visible=False)
    w["plan"] = gr.HTML("", elem_id="plan")
    return w


def setting(service: Service) -> Widgets:
    """Everything else."""
    w: Widgets = {}
    w["shape"] = gr.Radio(list(wishes.SHAPES), value="1:1", label="Shape", elem_id="shape")
    w["scale"] = gr.Radio(list(wishes.SCALES), value="normal", label="Size", elem_id="scale")
    w["count"] = slider(1, service.limits.max_images, 1, step=1, label="How many", elem_id="count")
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        w |= details(service)
    with gr.Accordion("Begin from a picture", open=False, elem_id="begin") as w["begin"]:
        w |= beginning(service)
    return w


def details(service: Service) -> Widgets:
    """What a person sets who knows the model."""
    models, loras = list(service.pipes), list(service.loras)
    w: Widgets = {}
    w["file"] = gr.UploadButton(
        "Take the settings of a picture's file",
        file_types=[f".{kind.lower()}" for kind in UPLOADS] + [".jpg"],
        size="sm",
        elem_id="file",
    )
    w["negative"] = gr.Textbox(label="Leave out", placeholder="blurry", elem_id="negative")
    most = service.limits.max_steps
    w["steps"] = slider(1, most, min(20, most), step=1, label="Steps", elem_id="steps")
    own = service.pipes[models[0]].default_guidance
    w["guidance"] = slider(
        0, 12, own, step=0.1, label="Guidance", info="how strongly the prompt leads"
    )
    with gr.Row(elem_id="seeds"):
        w["seed"] = number_or_none("Seed", "any")
        dice = gr.Button("⚄ Dice", elem_id="dice", size="sm", min_width=60)
    dice.click(any_seed, None, w["seed"], **QUIET)
    w["style"] = gr.Dropdown(
        [wishes.NO_STYLE, *styles()], value=wishes.NO_STYLE, label="Style", elem_id="style"
    )
    w["sampler"] = gr.Dropdown(list(SAMPLERS), value="dpm++2m", label="Sampler")
    with gr.Row():
        w["width"] = number_or_none("Width", "automatic")
        w["height"] = number_or_none("Height", "automatic")
    w["model"] = gr.Dropdown(models, value=models[0], label="Model", visible=len(models) > 1)
    w["loras"] = gr.Dropdown(
        loras, multiselect=True, label="Adapters (LoRA)", visible=bool(loras), elem_id="loras"
    )
    w["lora_weight"] = slider(
        -2, 2, 1, step=0.05, label="Their weight", visible=bool(loras), elem_id="lora_weight"
    )
    return w


def slider(least: float, most: float, value: float, **settings: Any) -> Any:
    """A slider whose box may be empty or out of range while a person writes in it.

    Gradio's own would say so to whatever listens, in words of its code.
    """
    made = gr.Slider(least, most, value, **settings)
    made.preprocess = lambda payload: payload  # type: ignore[method-assign]
    return made


def number_or_none(label: str, placeholder: str) -> Any:
    """A whole number that may be left out.

    Gradio's own box for numbers shows and sends 0 where nothing was written.
    """
    return gr.Textbox(
        label=label,
        placeholder=placeholder,
        max_lines=1,
        min_width=100,
        elem_id=label.lower(),
    )


def beginning(service: Service) -> Widgets:
    """A picture to begin from, and the brush for what is to be drawn anew."""
    w: Widgets = {}
    gr.Markdown(
        "Put a picture here. Paint over what is to be drawn anew, or nothing to change it all."
    )
    w["canvas"] = make_canvas(
        service.limits.max_pixels, label="Picture and mask", elem_id="canvas", height=380
    )
    w["fit"] = gr.Checkbox(True, label="Scale and cut it to the shape and size above")
    w["strength"] = slider(
        0, 1, 0.6, step=0.05, label="Distance", info="how far from the picture: 1 forgets it"
    )
    return w
