"""What requests ask of the networks, as the wishes of a plan: sizes, rows, pictures at once."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pixsigma.editing.plan import planned
from pixsigma.many import MOST_PLACES
from pixsigma.memory import Wish
from pixsigma.prompting import leads
from pixsigma.prompts.parse import parse
from pixsigma.weights.facts import Facts

if TYPE_CHECKING:
    from pixsigma.requests import GenerationRequest


def needs_of(
    requests: "Sequence[GenerationRequest]", facts: Facts, at_once: int, **machine: Any
) -> tuple[Wish, ...]:
    """The wishes that ask most: that of the largest picture, and that of the largest batch.

    `at_once` bounds the pictures in the making, as in `stream_many`; `machine` are fields of a Wish
    that no request tells. Raises InputError for pictures that cannot be read, SizeError.
    """
    wishes = [wish_of(request, facts, **machine) for request in requests]
    total = sum(wish.pictures for wish in wishes)
    joined = [joined_with_others(wish, facts, min(at_once, total)) for wish in wishes]
    largest = max(joined, key=lambda wish: wish.width * wish.height, default=None)
    widest = max(joined, key=lambda wish: wish.pictures * places_of(wish, facts), default=None)
    return tuple(dict.fromkeys(wish for wish in (largest, widest) if wish is not None))


def wish_of(request: "GenerationRequest", facts: Facts, **machine: Any) -> Wish:
    """One request, without what is drawn beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the drawing itself will tell
        plan = planned(request, facts.default_size, facts.multiple)
    last = plan.rounds[-1]
    scale = facts.guidance_scale if request.guidance_scale is None else request.guidance_scale
    weighted = request.prompt_syntax == "weighted"
    num_joined = len(parse(request.styled_prompt)) if weighted else 1
    return Wish(
        width=last.size[1],
        height=last.size[0],
        steps=request.num_inference_steps,
        guided=leads(request.guidance, scale, composed=num_joined > 1),
        beside=num_joined - 1 + len(request.regions) + request.guidance.disturbs,
        pictures=request.num_images,
        window=last.seen if last.window is not None else None,
        begins=plan.canvas is not None or len(plan.rounds) > 1,
        **machine,
    )


def joined_with_others(wish: Wish, facts: Facts, at_once: int) -> Wish:
    """With as many pictures as one batch of the network may hold of this kind."""
    room = MOST_PLACES // places_of(wish, facts)
    return replace(wish, pictures=max(wish.pictures, min(at_once, room)))


def places_of(wish: Wish, facts: Facts) -> int:
    """Latents that the network sees at once for each picture, all its rows together."""
    height, width = wish.window or (wish.height, wish.width)
    rows = wish.rows // wish.pictures
    return max(1, rows * height * width // facts.autoencoder.factor**2)
