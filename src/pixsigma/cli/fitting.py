"""From flags to a plan, and from a plan to a pipeline that follows it."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pixsigma.buckets import asked_multiple, check_size, size_for_aspect
from pixsigma.costs import parameters
from pixsigma.errors import InputError, MissingWeightsError
from pixsigma.given import expanded
from pixsigma.machine import parse_memory, this_machine
from pixsigma.memory import Plan, Wish, make_plan, require
from pixsigma.models.decoding import check_way
from pixsigma.models.t5 import T5Encoder
from pixsigma.needs import needs_of
from pixsigma.requests import GenerationRequest, request_from
from pixsigma.weights.build import ALL_PARTS, locate
from pixsigma.weights.facts import Facts, facts_of
from pixsigma.weights.prompt_cache import LARGE, default_folder

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The precisions that the command line knows."""

SMALL = 2_000_000_000
"""Bytes that a drawing may need, roughly counted, before the machine is looked at."""


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of this name; `auto` is fp32 on a CPU and fp16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise InputError(f"--dtype must be auto, {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def plan_for(
    model: str,
    *,
    size: tuple[int, int] | None,
    device: torch.device,
    dtype: torch.dtype,
    memory: str | None = None,
    decode: str = "auto",
    text_and_vae: str | None = None,
    controlnets: Iterable[str] = (),
    guidance: float | None = None,
    measure: bool = False,
    **wish: Any,
) -> Plan:
    """The plan of a picture of `size` (width, height), the model's own where None, as `guidance`.

    Raises WeightsError, or InputError for flags that make no sense.
    """
    facts = facts_of(model, text_and_vae, controlnets)
    if size:
        check_size(*size, facts.multiple)
    guided = (facts.guidance_scale if guidance is None else guidance) > 1
    width, height = size or facts.default_size
    wished = Wish(
        width=width, height=height, dtype=dtype, decode=asked_way(decode), guided=guided, **wish
    )
    return planned(facts, [wished], device, memory, measure)


def planned(
    facts: Facts,
    wishes: Sequence[Wish],
    device: torch.device,
    memory: str | None,
    measure: bool = False,
) -> Plan:
    """The plan that serves all wishes, for known facts."""
    first, *others = wishes
    machine = this_machine(device, first.dtype, measure)
    if memory is not None:
        machine = replace(machine, memory=parse_memory(memory))
    make_plan(facts, first, machine, *others)
    # rehearsing has brought code into the process, which stays there and counts from now on
    base = this_machine(device, first.dtype, measure=False).base
    return make_plan(facts, first, replace(machine, base=base), *others)


def asked_way(decode: str) -> str | None:
    """What --decode asks for, None for what leaves it to the plan; raises InputError."""
    if decode == "auto":
        return None
    check_way(decode)
    return decode


def sized(
    request: GenerationRequest,
    native: tuple[int, int],
    multiple: int,
    aspect: tuple[int, int] | None,
) -> GenerationRequest:
    """The request with a size where it names none and has no picture whose size it keeps."""
    if request.width or (request.image is not None and not aspect):
        return request
    height, width = native
    if aspect:
        height, width = size_for_aspect(max(native), *aspect, asked_multiple(multiple))
    told = request.model_dump(exclude_none=True) | {"width": width, "height": height}
    return request_from(**told)


def fitted(
    model: str,
    requests: Iterable[GenerationRequest],
    *,
    device: torch.device,
    dtype: torch.dtype,
    memory: str | None,
    decode: str,
    prompt_cache: str,
    text_and_vae: str | None,
    quantize: str | None = None,
    aspect: tuple[int, int] | None = None,
    batch: int = 1,
) -> "PixArtSigmaPipeline":
    """The pipeline for these requests, `batch` at a time, loaded and placed as its plan says.

    Where a drawing is small beside any machine and no limit is given, no plan is made. Raises
    WeightsError, and OutOfMemoryError with advice where nothing fits.
    """
    requests = list(requests)
    named = [control.network for request in requests for control in request.control]
    plan, way = None, asked_way(decode)
    facts = facts_here(model, text_and_vae, [file for file in named if file is not None])
    requests = [sized(request, facts.default_size, facts.multiple, aspect) for request in requests]
    wishes = needs_of(requests, facts, batch, dtype=dtype, decode=way)
    if memory is not None or needs_plan(facts, wishes, dtype):
        plan = require(planned(facts, wishes, device, memory))
    cache = cache_folder(prompt_cache, facts)
    return load(model, device, dtype, plan, decode, cache, text_and_vae, quantize)


def load(
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    plan: Plan | None,
    decode: str,
    prompt_cache: Path | None,
    text_and_vae: str | None,
    quantize: str | None,
) -> "PixArtSigmaPipeline":
    """The pipeline, following a plan if there is one."""
    from pixsigma.pipeline import PixArtSigmaPipeline

    pipe = PixArtSigmaPipeline.from_pretrained(
        model,
        torch_dtype=dtype,
        text_and_vae=text_and_vae,
        stream_text=plan is not None and plan.stream_text,
        prompt_cache=prompt_cache,
        quantize=quantize,
    )
    pipe.decoding = plan.decode if plan else decode.replace("auto", "whole")
    if plan is None or plan.placement == "resident":
        return pipe.to(device)
    if plan.placement == "model":
        pipe.enable_model_cpu_offload(str(device))
    else:
        pipe.enable_sequential_cpu_offload(str(device))
    return pipe


def facts_here(model: str, text_and_vae: str | None, controlnets: Sequence[str]) -> Facts:
    """The facts; what is not on this machine is downloaded first. Raises WeightsError."""
    with suppress(MissingWeightsError):
        facts = facts_of(model, text_and_vae, controlnets)
        if facts.here:
            return facts
    locate(model, ALL_PARTS, text_and_vae)
    return facts_of(model, text_and_vae, controlnets)


def needs_plan(facts: Facts, wishes: Iterable[Wish], dtype: torch.dtype) -> bool:
    """Whether a rough count says that memory may matter."""
    weights = parameters(T5Encoder, facts.text_encoder) * dtype.itemsize
    return any(
        weights + (4000 + 200 * wish.rows) * wish.width * wish.height > SMALL for wish in wishes
    )


def cache_folder(text: str, facts: Facts) -> Path | None:
    """The folder of --prompt-cache; `auto` keeps prompts of encoders that are large."""
    if text == "off":
        return None
    if text != "auto":
        return expanded(text)
    weights = parameters(T5Encoder, facts.text_encoder) * facts.stored["text_encoder"]
    return default_folder() if weights > LARGE else None
