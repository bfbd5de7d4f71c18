"""What a request says, turned into what each step reads: styles, the prompt language, weights."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from pixsigma.config import TransformerConfig
from pixsigma.diffusers_call import cleaned_twice
from pixsigma.diffusion.steering import Clause, Steering
from pixsigma.editing.canvas import Canvas
from pixsigma.editing.regions import region_mask
from pixsigma.errors import InputError
from pixsigma.guidance_options import GuidanceOptions
from pixsigma.interfaces import TextFeatures
from pixsigma.models.text import T5TextEncoder
from pixsigma.models.weighting import encode_weighted
from pixsigma.prompts.parse import parse
from pixsigma.prompts.resolve import Line, Spans, lines_at, plain

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline
    from pixsigma.requests import GenerationRequest


def warn_of_unread(encoder: object, prompt: str) -> None:
    """Warn where a model that tells its captions' words is asked for others."""
    if isinstance(encoder, T5TextEncoder) and (unread := encoder.unread(prompt)):
        warnings.warn(
            f"this model was never shown the word{'s' * (len(unread) > 1)} {', '.join(unread)}: it "
            "draws what is nearest among what it knows",
            stacklevel=3,
        )


def warn_of_idle(request: "GenerationRequest", scale: float) -> None:
    """Warn of what was asked for and does nothing where no step is guided."""
    options = request.guidance
    idle = {
        "the negative prompt": bool(request.styled_negative),
        "the interval": (options.start, options.stop) != (0, 1) and not options.disturbs,
        "the schedule": options.schedule != "constant",
        "apg": options.apg,
        "rescale": options.rescale > 0 and not options.disturbs,
    }
    if named := [name for name, given in idle.items() if given]:
        warnings.warn(
            f"there is no guidance at guidance_scale {scale:g}, so {' and '.join(named)} "
            f"do{'es' * (len(named) == 1)} nothing: leave out, or take a scale above 1",
            stacklevel=3,
        )


def steering_of(
    pipe: "PixArtSigmaPipeline",
    request: "GenerationRequest",
    num_steps: int,
    size: tuple[int, int],
    canvas: Canvas | None = None,
) -> Steering:
    """Texts of every step, encoded once each and on the device; what leads, and where.

    `size` is that of the drawing in pixels, (height, width), and `canvas` the picture that it is a
    part of, which regions need. Warns of what does nothing without guidance.

    Raises InputError for what the model cannot do: layers that it has not, or the prompt language
    where prompts are cleaned.
    """
    layers = disturbed_layers(request.guidance, pipe.transformer_config)
    read = reader(pipe, request)
    steps = [[(line, read(line.spans)) for line in row] for row in rows(request, num_steps)]
    texts = tuple(tuple(Clause(found, line.weight) for line, found in row) for row in steps)
    scale = pipe.default_guidance if request.guidance_scale is None else request.guidance_scale
    nulls: tuple[TextFeatures | None, ...] = (None,) * num_steps
    if leads(request.guidance, scale, composed=any(len(row) > 1 for row in texts)):
        nulls = tuple(negatives(pipe, request, read, texts))
    else:
        warn_of_idle(request, scale)

    @cache
    def settled(features: TextFeatures) -> TextFeatures:
        return features.trimmed().to(pipe.device, pipe.dtype)

    @cache
    def leading(features: TextFeatures) -> TextFeatures:
        return replace(settled(features), leading=True)

    options = request.guidance
    if request.shortcuts is not None:
        stop = min(options.stop, max(request.shortcuts.guided, options.start))
        options = options.model_copy(update={"stop": stop})
    parts = regional(pipe, request, read, num_steps, size, canvas)
    texts = tuple(row + part for row, part in zip(texts, parts, strict=True))
    steering = Steering(
        options=options,
        scale=scale,
        texts=tuple(tuple(replace(c, features=leading(c.features)) for c in row) for row in texts),
        nulls=tuple(null and settled(null) for null in nulls),
        layers=layers,
    )
    if not any(map(steering.inside, range(num_steps))):
        told = (
            f"no step of {num_steps} begins in the interval {options.start:g} to {options.stop:g}"
        )
        warnings.warn(f"{told}: nothing is guided; widen it, or take more steps", stacklevel=2)
    return steering


def regional(
    pipe: "PixArtSigmaPipeline",
    request: "GenerationRequest",
    read: Callable[[Spans], TextFeatures],
    num_steps: int,
    size: tuple[int, int],
    canvas: Canvas | None,
) -> list[tuple[Clause, ...]]:
    """The texts of the regions in every step, and where they hold."""
    found: list[tuple[Clause, ...]] = [()] * num_steps
    for k, region in enumerate(request.regions, start=1):
        mask = region_mask(region, size, pipe.factor, canvas).to(pipe.device)
        if not mask.any():
            warnings.warn(f"region {k} covers nothing of what is drawn", stacklevel=3)
            continue
        lines = lines_of(region.prompt, request.prompt_syntax, num_steps)
        for i, (line,) in enumerate(lines):
            found[i] = (*found[i], Clause(read(line.spans), region=mask))
    return found


def rows(request: "GenerationRequest", num_steps: int, negative: bool = False) -> list[list[Line]]:
    """The lines of every step."""
    text = request.styled_negative if negative else request.styled_prompt
    return lines_of(text, request.prompt_syntax, num_steps)


def lines_of(text: str, syntax: str, num_steps: int) -> list[list[Line]]:
    """The lines of one text in every step."""
    if syntax == "plain":
        return [list(plain(text))] * num_steps
    prompt = parse(text)
    return [list(lines_at(prompt, i, num_steps)) for i in range(num_steps)]


def reader(
    pipe: "PixArtSigmaPipeline", request: "GenerationRequest"
) -> Callable[[Spans], TextFeatures]:
    """The encoder of lines; a line that comes again is not encoded again."""
    clean = pipe.variant == "alpha" if request.clean_caption is None else request.clean_caption
    if clean and request.prompt_syntax == "weighted":
        raise InputError(
            "cleaning rewrites a prompt, so the weights of its words would be lost: set "
            "clean_caption to false, or prompt_syntax to plain"
        )
    prepare = cleaned_twice if clean else str.strip

    @cache
    def read(spans: Spans) -> TextFeatures:
        if len(spans) == 1:
            spans = ((prepare(spans[0][0]), spans[0][1]),)
        if request.long_prompts == "truncate" and all(weight == 1 for _, weight in spans):
            return pipe.encode(["".join(words for words, _ in spans)])
        if not hasattr(pipe.text_encoder, "tokenizer"):
            raise InputError("weights and long prompts need a T5TextEncoder as text_encoder")
        with pipe.placement.running(pipe.text_encoder.encoder):
            return encode_weighted(
                pipe.text_encoder,
                spans,
                max_length=pipe.max_tokens,
                long_prompts=request.long_prompts,
                device=pipe.device,
            )

    return read


def leads(options: GuidanceOptions, scale: float, composed: bool) -> bool:
    """Whether any step looks at the unconditional text; `composed` are texts joined by AND."""
    scales = [scale]
    scales += [options.end_scale] if options.schedule != "constant" else []
    return max(scales) > 1 or options.cfgpp is not None or composed


def negatives(
    pipe: "PixArtSigmaPipeline",
    request: "GenerationRequest",
    read: Callable[[Spans], TextFeatures],
    texts: tuple[tuple[Clause, ...], ...],
) -> list[TextFeatures]:
    """What every step leads away from."""
    num_steps = len(texts)
    if request.null_caption == "prompt":
        return [pipe.encode_null(texts[0][0].features)] * num_steps
    return [read(line.spans) for (line,) in rows(request, num_steps, negative=True)]


def disturbed_layers(options: GuidanceOptions, config: TransformerConfig) -> tuple[int, ...]:
    """The blocks for PAG and SEG, the middle one where none is named."""
    layers = options.layers or (config.num_layers // 2,)
    if not options.disturbs:
        return ()
    if beyond := [layer for layer in layers if not 0 <= layer < config.num_layers]:
        raise InputError(f"the model has layers 0 to {config.num_layers - 1}, got {beyond[0]}")
    compressed = set(config.kv_compression.layers if config.kv_compression else ())
    if options.pag and (fewer := sorted(compressed & set(layers))):
        raise InputError(
            f"PAG needs a value for each token, and layer {fewer[0]} of this model compresses them:"
            " name other layers, or take SEG"
        )
    return layers
