"""ControlNets and image prompts of a pipeline: loaded by kind or named by a request, and their
pictures as latents.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from PIL import Image, ImageOps

from pixsigma.adapters import network_of
from pixsigma.buckets import size_for_aspect
from pixsigma.diffusion.schedule import Level
from pixsigma.editing.canvas import Canvas
from pixsigma.editing.opening import open_picture, shown
from pixsigma.errors import InputError, SizeError, UnknownNameError
from pixsigma.hints import MADE
from pixsigma.images import signed
from pixsigma.models.controlled import Control, Network
from pixsigma.models.image_prompt import ImagePrompt
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.placement import release
from pixsigma.shapes import Images
from pixsigma.weights.controls import ControlReport, control_file, read_control

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline
    from pixsigma.requests import ControlChoice

Chosen: TypeAlias = "tuple[tuple[ControlChoice, Network], ...]"
"""What a request asks for, with the networks that do it."""


@dataclass
class Shelf:
    """The ControlNets and image prompts of a pipeline."""

    loaded: dict[str, Network] = field(default_factory=dict)
    """By the kind of their hints."""
    named: dict[Any, Network] = field(default_factory=dict)
    """By file, those that the last request named."""
    at_work: Counter[Network] = field(default_factory=Counter)
    """How many drawings under way each takes part in."""


def load_control(
    self: "PixArtSigmaPipeline", path: str | Path, kind: str | None = None
) -> ControlReport:
    """Load a ControlNet, or an image prompt (kind `picture`), beside those that are there.

    `kind` is for files that do not tell, such as the authors'. Raises WeightsError or InputError;
    then the pipeline is as before.
    """
    network, report = opened(self, path, kind)
    kind = report.kind or kind
    if kind is None:
        raise InputError(f'{path} does not say what it follows: pass kind="edges" or another word')
    if kind in self.controls.loaded:
        raise InputError(f"hints of kind {kind} have a ControlNet already: unload_controls() first")
    self.controls.loaded[kind] = network
    return report


def unload_controls(self: "PixArtSigmaPipeline") -> None:
    """Forget all ControlNets."""
    self.controls = Shelf()


def opened(
    pipe: "PixArtSigmaPipeline", path: str | Path, kind: str | None
) -> tuple[Network, ControlReport]:
    """Read a file for this pipeline; raises WeightsError."""
    base = cast(PixArtTransformer, network_of(pipe))
    streamed = pipe.placement.mode == "sequential"
    if streamed:  # its weights lie elsewhere, and one is looked at
        release(base)
    try:
        return read_control(path, base, pipe.variant, kind=kind, dtype=pipe.dtype)
    finally:
        if streamed:
            pipe.placement.settle(base)


def read_choices(pipe: "PixArtSigmaPipeline", choices: "Iterable[ControlChoice]") -> Chosen:
    """The ControlNets that a request asks for, without those of weight 0; raises WeightsError.

    Files stay read until a request names others. Raises UnknownNameError for a kind that has none.
    """
    shelf, before = pipe.controls, pipe.controls.named
    found: list[tuple[ControlChoice, Network]] = []
    named: dict[Any, Network] = {}
    for choice in choices:
        if not choice.weight:
            continue
        if choice.network is not None:
            file = control_file(choice.network)
            key = str(file), file.stat().st_mtime_ns, choice.kind, pipe.dtype, id(pipe.transformer)
            if key not in named:
                known = before.get(key)
                named[key] = opened(pipe, file, choice.kind)[0] if known is None else known
            found.append((choice, named[key]))
        elif choice.kind in shelf.loaded:
            found.append((choice, shelf.loaded[choice.kind]))
        else:
            there = ", ".join(shelf.loaded) or "none"
            raise UnknownNameError(
                f"there is no ControlNet for hints of kind {choice.kind!r}, loaded: {there}; name "
                "its file (network, --controlnet) or load_control(FILE)"
            )
    if named:
        shelf.named = named
    return tuple(found)


@contextmanager
def working(pipe: "PixArtSigmaPipeline", controls: Iterable[Control]) -> Iterator[None]:
    """While inside, the copies can compute where the pipeline does; drawings may overlap.

    Raises OutOfMemoryError.
    """
    at_work, networks = pipe.controls.at_work, {control.network for control in controls}
    travels = pipe.placement.mode == "model"
    with pipe.placement.running():
        for network in networks:
            if not at_work[network]:
                release(network)
                pipe.placement.settle(network)
                if travels:
                    network.to(pipe.device)
    at_work.update(networks)
    try:
        yield
    finally:
        at_work.subtract(networks)
        for network in networks:
            if travels and not at_work[network]:
                network.to("cpu")


@contextmanager
def placed(pipe: "PixArtSigmaPipeline", controls: Iterable[Control]) -> Iterator[None]:
    """While inside, the transformer and the copies can compute; raises OutOfMemoryError."""
    with pipe.placement.running(pipe.transformer), working(pipe, controls):
        yield


def follower(
    pipe: "PixArtSigmaPipeline",
    choices: "Iterable[ControlChoice]",
    whole: tuple[int, int],
    canvas: Canvas | None = None,
) -> Callable[[Sequence[Level], tuple[int, int]], tuple[Control, ...]]:
    """What gives the copies with their hints as latents to a drawing's levels and (height, width).

    `whole` (height, width) is the picture that hints are for; of it the drawing shows the box of
    `canvas`, or all. Raises WeightsError or InputError, SizeError for a hint of another shape.
    """
    chosen = read_choices(pipe, choices)

    def controls_of(levels: Sequence[Level], size: tuple[int, int]) -> tuple[Control, ...]:
        found = []
        for choice, network in chosen:
            if isinstance(network, ImagePrompt):
                seen = prompt_of(choice, max(pipe.default_size), pipe.multiple)
            else:
                seen = hint_of(choice, size, whole, canvas)
            latents = pipe.encode_pictures(seen)
            begins, ends = when(levels, choice.start, choice.end)
            if begins < 0:
                warnings.warn(
                    f"no step of {len(levels) - 1} begins between {choice.start:g} and "
                    f"{choice.end:g}, so the hint of kind {choice.kind} does nothing",
                    stacklevel=2,
                )
            found.append(Control(network, latents, choice.weight, begins, ends))
        return tuple(found)

    return controls_of


def prompt_of(choice: "ControlChoice", side: int, multiple: int) -> Images:
    """(1, 3, height, width): the picture of an image prompt, scaled and cut to the size nearest to
    its shape among those of a model's native `side` in pixels.

    Raises InputError, and SizeError beyond 1:4 and 4:1.
    """
    picture = open_picture(choice.hint)
    height, width = size_for_aspect(side, *picture.size, multiple)
    return signed(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))


def hint_of(
    choice: "ControlChoice",
    size: tuple[int, int],
    whole: tuple[int, int],
    canvas: Canvas | None = None,
) -> Images:
    """(1, 3, height, width): the hint at the drawing's size, made of its picture where it is made.

    Raises InputError, and SizeError for a picture of another shape than `whole`.
    """
    picture = open_picture(choice.hint)
    check_shape(picture, whole, choice)
    if canvas is None:
        picture = ImageOps.fit(picture, size[::-1], Image.Resampling.LANCZOS)
    else:
        picture = canvas.shown_of(picture)
    if choice.kind in MADE and not choice.ready:
        picture = MADE[choice.kind](picture)
    return signed(picture) if canvas is None else canvas.filled(signed(picture))


def check_shape(picture: Image.Image, whole: tuple[int, int], choice: "ControlChoice") -> None:
    """Raise SizeError unless the picture has the shape of `whole`, up to rounding."""
    height, width = whole
    # scaled to the height, how many pixels the width is off; one of the hint is rounding
    off = abs(picture.width * height / picture.height - width)
    if off > max(1.0, height / picture.height):
        raise SizeError(
            f"a hint has the shape of the picture, {width}x{height}, {shown(choice.hint)} has "
            f"{picture.width}x{picture.height}: cut it, or draw in its shape (--aspect, --size)"
        )


def when(levels: Sequence[Level], start: float, end: float) -> tuple[float, float]:
    """First timestep, and the last without, of the steps whose share i/S is in [start, end)."""
    num = len(levels) - 1
    steps = [i for i in range(num) if start <= i / num < end]
    if not steps:
        return -1.0, -1.0
    first, last = steps[0], steps[-1] + 1
    # the network is told times in single precision
    begins = float("inf") if first == 0 else torch.tensor(levels[first].timestep).item()
    ends = -1.0 if last == num else torch.tensor(levels[last].timestep).item()
    return begins, ends
