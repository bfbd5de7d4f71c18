"""Settings out of a picture's file into the form: of any picture that pixsigma wrote."""

from pathlib import Path
from typing import Any

from pixsigma.errors import InputError
from pixsigma.images import read_settings
from pixsigma.requests import GenerationRequest, request_from
from pixsigma.server.studio import wishes
from pixsigma.server.studio.canvas import SHRUNK, check_upload
from pixsigma.server.studio.drawing import Studio

IN_FORM = {
    *("prompt", "negative_prompt", "style", "width", "height", "num_inference_steps"),
    *("guidance_scale", "sampler", "seed", "loras"),
}
"""Fields of a request that the form has a place for, where no picture is begun from."""


def taken(studio: Studio, file: Path, model: str) -> tuple[dict[str, Any], list[str]]:
    """The widgets' values that a file's settings make, and what the form has no place for.

    `model` is the one that is set, which stays where this server does not have the file's. Raises
    InputError for what is no picture, has no settings, or has damaged ones.
    """
    check_upload(file, SHRUNK * studio.service.limits.max_pixels)
    try:
        settings = read_settings(file)
    except InputError as error:
        # a browser's file lies here under a name that tells nobody anything
        raise InputError(str(error).replace(str(file), "this file")) from error
    plain = GenerationRequest(prompt="any").model_dump(mode="json")
    left = [k for k in plain if k not in IN_FORM and settings.get(k, plain[k]) != plain[k]]
    named = settings.get("model")
    if isinstance(named, str) and named in studio.service.pipes:
        model = named
    else:
        left.append("model")
    given = {name: settings[name] for name in IN_FORM if name in settings}
    fields = request_from(wishes.NAMES, **given).model_dump(mode="json")
    if fields["guidance_scale"] is None:
        fields["guidance_scale"] = studio.service.pipes[model].default_guidance
    loras = studio.service.loras
    here = [lora for lora in fields["loras"] if lora["path"] in map(str, loras.values())]
    left += ["loras"] * (here != fields["loras"]) + ["style"] * isinstance(fields["style"], dict)
    values = wishes.widgets_of(fields | {"loras": here}, model, studio.native(model), loras)
    return values, left
