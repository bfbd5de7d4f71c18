"""From noise to image, one step at a time: the loop a newcomer should find."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from pixsigma.diffusion.guidance import check_rows, guided
from pixsigma.diffusion.samplers.base import Noise, Predict, Sampler
from pixsigma.diffusion.schedule import Level, NoiseSchedule
from pixsigma.diffusion.steering import Steering, steered
from pixsigma.errors import InputError, NotFiniteError
from pixsigma.fast_options import FastOptions
from pixsigma.interfaces import Conditions, TextFeatures
from pixsigma.models.caching import CachingTransformer
from pixsigma.models.controlled import Control, Controlled
from pixsigma.models.windows import Windowed
from pixsigma.pages import give_back_pages, kept_pages
from pixsigma.shapes import Latents

OnStep: TypeAlias = Callable[[int, float, Tensor], Tensor | None]


@dataclass(frozen=True)
class Step:
    """What a pipeline yields, so that its caller owns progress, previews and cancelling."""

    stage: Literal["text", "denoising", "decoding", "done"]
    index: int = 0
    """Denoising steps done."""
    total: int = 0
    """Denoising steps in all."""
    timestep: float = 0.0
    """Where the latents of this step are, in [0, 999]."""
    latents: Latents | None = field(default=None, repr=False)
    images: list[Any] = field(default_factory=list, repr=False)
    """PIL images, one a seed; only when done."""
    seeds: tuple[int, ...] = ()
    preview: Callable[[], Any] = field(default=lambda: None, repr=False)
    """A cheap small PIL image of the first picture as it stands; costs nothing until called."""


class Given(Protocol):
    """What is known of the latents before they are drawn."""

    def start(self, sampler: Sampler, noise: Latents, levels: Sequence[Level]) -> Latents:
        """The first `x` at `levels[0]`, from N(0, 1) noise."""
        ...

    def around(self, predict: Predict) -> Predict:
        """The denoiser that knows it too."""
        ...


@dataclass(frozen=True)
class Drawing:
    """Everything that the loop needs, on the device already."""

    latents: Latents
    """(B, C, H, W) of N(0, 1)."""
    text: TextFeatures
    negative: TextFeatures | None
    guidance_scale: float
    levels: tuple[Level, ...]
    noise: Noise
    conditions: Conditions | None = None
    on_step: OnStep | None = None
    """Called after each step; latents that it returns take the place of the step's."""
    given: Given | None = None
    fast: FastOptions | None = None
    """What may be left out."""
    window: tuple[int, int] | None = None
    """(height, width) in latents of the tiles that the network sees; None: all at once."""
    steering: Steering | None = None
    """More than classifier-free guidance of one text; then `text` and `negative` are not read."""
    controls: tuple[Control, ...] = ()
    """Hints that are followed, their networks on the device."""


def denoise(
    network: Callable[..., Tensor], sampler: Sampler, schedule: NoiseSchedule, drawing: Drawing
) -> Iterator[Step]:
    """Yield after every step; the last step's latents are the picture's.

    A grid of one level has no step: the latents that were given are yielded as they are.

    Raises NotFiniteError where the latents hold NaN or infinity: at once on a CPU, elsewhere at the
    end, since looking waits for the device.
    """
    levels = drawing.levels
    given = drawing.given
    noise = drawing.latents
    x = given.start(sampler, noise, levels) if given else sampler.start(noise, levels)
    predict_at = predictions(network, sampler, schedule, drawing)
    state = sampler.init(x, levels)
    total = len(levels) - 1
    yield Step("denoising", 0, total, levels[0].timestep, x)
    with kept_pages():
        for i in range(total):
            predict = given.around(predict_at(i)) if given else predict_at(i)
            x, state = sampler.step(predict, state, x, levels, i, drawing.noise)
            if drawing.on_step is not None:
                replaced = drawing.on_step(i, levels[i].timestep, x)
                x = x if replaced is None else replaced
            if x.device.type == "cpu":
                refuse_nan(x, "the transformer", "steps")
            yield Step("denoising", i + 1, total, levels[i + 1].timestep, x)
    give_back_pages()
    refuse_nan(x, "the transformer", "steps")


def predictions(
    network: Callable[..., Tensor], sampler: Sampler, schedule: NoiseSchedule, drawing: Drawing
) -> Callable[[int], Predict]:
    """The denoiser of each step."""
    kind, levels = schedule.config.prediction_type, drawing.levels
    if drawing.controls:
        network = Controlled(network, drawing.controls)
    if drawing.window is not None:
        network = Windowed(network, drawing.window)
    if drawing.fast is not None and hasattr(network, "through"):
        ends = levels[0].timestep, levels[-1].timestep
        network = CachingTransformer(network, drawing.fast, *ends)
    denoiser = with_conditions(network, drawing.conditions)
    if hasattr(network, "read"):
        variance = getattr(sampler, "reads_variance", True)
        denoiser = Reading(network, drawing.conditions, variance, bool(drawing.controls))
    if drawing.steering is not None:
        return steered(denoiser, drawing.steering, kind)
    text, negative, scale = drawing.text, drawing.negative, drawing.guidance_scale
    predict = guided(denoiser, text, negative, scale, prediction_type=kind)
    return lambda i: predict


class Reading:
    """The network for one drawing: what its steps share is computed once.

    Texts become keys and values when first seen, times are embedded, one row for all pictures. The
    variance fraction is left out where the sampler does not look at it.
    """

    def __init__(
        self,
        network: Any,
        conditions: Conditions | None,
        variance: bool,
        controlled: bool = False,
    ) -> None:
        self.network = network
        self.conditions = conditions
        self.variance = variance
        self.controlled = controlled
        """Whether it asks which texts lead."""
        self._texts: dict[int, tuple[TextFeatures, Any]] = {}
        self._times: dict[tuple[float, int], Any] = {}

    def answer(
        self, x: Latents, timestep: float, texts: Sequence[TextFeatures], **extra: Any
    ) -> Tensor:
        """Every picture of x (B, C, H, W) under each of the texts, text by text, in one batch."""
        for text in texts:
            check_rows(len(text.mask), len(x))
        inputs = x if len(texts) == 1 else torch.cat([x] * len(texts))
        read = tuple(self.read(text) for text in texts)
        times = self.at(timestep, len(texts), x.device)
        return self.network(inputs, times, read, variance=self.variance, **extra)

    def __call__(self, x: Latents, t: Tensor, text: Tensor, *rest: Any, **extra: Any) -> Tensor:
        """The network itself, as a Denoiser."""
        return with_conditions(self.network, self.conditions)(x, t, text, *rest, **extra)

    def read(self, text: TextFeatures) -> Any:
        """What the network reads of a text, unmasked where all rows are equally long."""
        if id(text) not in self._texts:
            short = text.trimmed()
            mask = None if short.mask.all() else short.mask
            # the features stay beside it, so that nothing else gets their id
            extra = {"leading": text.leading} if self.controlled else {}
            self._texts[id(text)] = text, self.network.read(short.embeddings, mask, **extra)
        return self._texts[id(text)][1]

    def at(self, timestep: float, num_texts: int, device: torch.device) -> Any:
        """The time of a step."""
        key = timestep, num_texts if self.conditions else 1
        if key not in self._times:
            t = torch.full((1,), timestep, dtype=torch.float32, device=device)
            self._times[key] = self.network.embed(t, repeated(self.conditions, num_texts))
        return self._times[key]


def repeated(conditions: Conditions | None, times: int) -> Conditions | None:
    """The conditions of all pictures, `times` times."""
    if conditions is None:
        return None
    return Conditions(
        conditions.resolution.repeat(times, 1), conditions.aspect_ratio.repeat(times, 1)
    )


def with_conditions(
    network: Callable[..., Tensor], conditions: Conditions | None
) -> Callable[..., Tensor]:
    """The network with its micro-conditions bound, repeated for all rows of guidance."""
    if conditions is None:
        return network

    def conditioned(
        x: Latents, t: Tensor, text: Tensor, mask: Tensor | None = None, **extra: Any
    ) -> Tensor:
        both = repeated(conditions, len(x) // len(conditions.resolution))
        return network(x, t, text, mask, both, **extra)

    return conditioned


def draw_noise(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """N(0, 1) on the CPU: one generator for the whole batch, or each picture from its own."""
    if len(generators) == 1:
        g = generators[0]
        return torch.randn(*shape, generator=g, device=g.device, dtype=dtype)
    rows = [
        torch.randn(1, *shape[1:], generator=g, device=g.device, dtype=dtype) for g in generators
    ]
    return torch.cat(rows)


def first_noise(draw: Noise, given: Tensor | None, shape: Sequence[int]) -> Tensor:
    """What is given in place of noise, else drawn; raises InputError for another shape."""
    if given is None:
        return draw()
    if not isinstance(given, Tensor) or tuple(given.shape) != tuple(shape):
        told = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"latents for these pictures are {tuple(shape)}, got {told}")
    return given


def refuse_nan(x: Tensor, who: str, what: str) -> None:
    """Raise NotFiniteError that names the likely cause and the remedy."""
    if torch.isfinite(x).all():
        return
    cause = (
        "fp16 overflows above 65504: use dtype bf16 or fp32 for this part"
        if x.dtype == torch.float16 or "auto" in who
        else "the weights may be damaged, or the guidance too strong; fp16 weights may overflow: "
        "try dtype bf16 or fp32"
    )
    raise NotFiniteError(f"{who} produced NaN or infinity in its {what}: {cause}")
