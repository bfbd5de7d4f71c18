"""The guidance family and texts that change: one `Predict` for each step.

Everything here is a wrapper over the denoiser: which rows its batch has, and what comes of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pixsigma.diffusion.combine import ProjectedUpdate, rescaled, scale_at
from pixsigma.diffusion.guidance import asked
from pixsigma.diffusion.prediction import Prediction, from_x0, predicted
from pixsigma.diffusion.samplers import DDIM, Euler, EulerAncestral, Sampler, get_sampler, with_eta
from pixsigma.diffusion.samplers.base import Predict
from pixsigma.diffusion.schedule import Level
from pixsigma.errors import InputError
from pixsigma.guidance_options import GuidanceOptions
from pixsigma.interfaces import Perturbation, TextFeatures
from pixsigma.shapes import Latents

CFGPP_SAMPLERS = (DDIM, Euler, EulerAncestral)
"""Those whose step is a share of x0 and a share of eps, which CFG++ takes from two predictions."""


@dataclass(frozen=True)
class Clause:
    """One of the texts that AND joins."""

    features: TextFeatures
    weight: float = 1.0
    region: Tensor | None = None
    """(1, 1, H, W) in [0, 1]: it is no part of AND, but takes the place of the rest here."""


@dataclass(frozen=True, kw_only=True)
class Steering:
    """What leads each step of one drawing."""

    options: GuidanceOptions
    scale: float
    texts: tuple[tuple[Clause, ...], ...]
    """The clauses of every step."""
    nulls: tuple[TextFeatures | None, ...]
    """What every step leads away from; None draws without guidance."""
    layers: tuple[int, ...] = ()
    """Blocks that PAG and SEG disturb."""

    def inside(self, i: int) -> bool:
        """Whether step i is in the interval of guidance."""
        return self.options.start <= i / len(self.texts) < self.options.stop

    def scale_at(self, i: int) -> float:
        """The guidance scale of step i."""
        return scale_at(self.options, self.scale, i, len(self.texts))

    def perturbation(self, i: int, num_rows: int) -> Perturbation | None:
        """How the last `num_rows` rows of step i are disturbed."""
        options = self.options
        if not self.inside(i) or not options.disturbs:
            return None
        return Perturbation(
            kind="identity" if options.pag else "blur",
            layers=self.layers,
            num_rows=num_rows,
            blur=options.seg_blur,
        )


@dataclass(frozen=True)
class Answers:
    """What the network said of one step, (B, C, H, W) each, in its own prediction type."""

    cond: Tensor
    null: Tensor | None
    disturbed: Tensor | None
    variance: Tensor | None


def sampler_for(name: str, eta: float, options: GuidanceOptions) -> Sampler:
    """The sampler of this name; raises InputError where eta or CFG++ is not defined for it."""
    sampler = with_eta(get_sampler(name), eta)
    if eta and not hasattr(sampler, "eta"):
        raise InputError(f"eta is a share of noise in a step of ddim, {name} has none; got {eta:g}")
    if options.cfgpp is not None and not isinstance(sampler, CFGPP_SAMPLERS):
        raise InputError(
            "CFG++ noises again with the unconditional eps, which only samplers that step with x0 "
            f"and eps look at: take ddim, euler or euler-a; got {type(sampler).__name__}"
        )
    return sampler


def steered(
    denoiser: Callable[..., Tensor], steering: Steering, prediction_type: str = "epsilon"
) -> Callable[[int], Predict]:
    """The denoiser of step i under its texts and options (docs/steering.md has the formulas)."""
    project = ProjectedUpdate(steering.options)

    def at(i: int) -> Predict:
        def predict(x: Latents, level: Level) -> Prediction:
            answers = ask(denoiser, steering, i, x, level)
            read = partial(predicted, x=x, level=level, prediction_type=prediction_type)
            found = combined(answers, steering, i, x, level, read, project)
            return replace(found, variance_fraction=answers.variance)

        return predict

    return at


def ask(
    denoiser: Callable[..., Tensor], steering: Steering, i: int, x: Latents, level: Level
) -> Answers:
    """One batch of all that step i needs: unconditional, every clause, disturbed."""
    clauses, num = steering.texts[i], len(x)
    null = steering.nulls[i] if needs_null(steering, i) else None  # one row fewer, where it may
    how = steering.perturbation(i, num)
    parts = [clause.features for clause in clauses]
    parts = ([null] if null else []) + parts + (parts[:1] if how else [])
    extra: dict[str, Any] = {"perturbation": how} if how else {}
    output = asked(denoiser, x, level, parts, **extra)
    outputs = list(output.split(num))
    disturbed = _mean(outputs.pop(), x) if how else None
    unconditional = _mean(outputs.pop(0), x) if null else None
    variance = outputs[0][:, x.shape[1] :] if outputs[0].shape[1] > x.shape[1] else None
    means = [_mean(each, x) for each in outputs]
    num_joined = sum(clause.region is None for clause in clauses)
    cond = means[0]
    if num_joined > 1:
        cond = composed(means[:num_joined], clauses[:num_joined], unconditional)
    cond = placed(cond, means[num_joined:], clauses[num_joined:])
    return Answers(cond, unconditional, disturbed, variance)


def needs_null(steering: Steering, i: int) -> bool:
    """Whether step i looks at the unconditional text."""
    replaced = steering.options.cfgpp is not None
    num_joined = sum(clause.region is None for clause in steering.texts[i])
    leads = steering.inside(i) if replaced else steering.scale_at(i) > 1
    return leads or num_joined > 1


def composed(means: Sequence[Tensor], clauses: Sequence[Clause], null: Tensor | None) -> Tensor:
    """null + sum of weight · (clause - null): composable diffusion (Liu et al. 2022)."""
    if null is None:
        raise InputError("texts joined by AND need the unconditional text, and there is none")
    updates = [c.weight * (mean - null) for c, mean in zip(clauses, means, strict=True)]
    return null + torch.stack(updates).sum(dim=0)


def placed(cond: Tensor, means: Sequence[Tensor], clauses: Sequence[Clause]) -> Tensor:
    """cond + sum of mask · (region - cond); masks that overlap to more than 1 share it.

    The weighted mean of MultiDiffusion (Bar-Tal et al. 2023, eq. 5) for one window.
    """
    regions = [clause.region for clause in clauses if clause.region is not None]
    if not regions:
        return cond
    most = torch.stack(regions).sum(dim=0).clamp(min=1)
    pairs = zip(regions, means, strict=True)
    return cond + torch.stack([mask / most * (mean - cond) for mask, mean in pairs]).sum(dim=0)


def combined(
    answers: Answers,
    steering: Steering,
    i: int,
    x: Latents,
    level: Level,
    read: Callable[[Tensor], Prediction],
    project: ProjectedUpdate,
) -> Prediction:
    """One prediction of the answers, by the formulas of the options; `read` parses an output."""
    options, cond, null = steering.options, answers.cond, answers.null
    scale = steering.scale_at(i)
    if options.cfgpp is not None and null is not None and steering.inside(i):
        return Prediction(read(null + options.cfgpp * (cond - null)).x0, read(null).eps)
    strength = options.pag or options.seg
    if options.apg and null is not None and scale > 1:
        clean = read(cond).x0
        update = (scale - 1) * project(clean, read(null).x0)
        if answers.disturbed is not None:
            update = update + strength * (clean - read(answers.disturbed).x0)
        return from_x0(clean + update, x, level)
    output = cond if null is None or scale == 1 else null + scale * (cond - null)
    if answers.disturbed is not None:
        output = output + strength * (cond - answers.disturbed)
    if options.rescale and output is not cond:
        output = rescaled(output, cond, options.rescale)
    return read(output)


def _mean(output: Tensor, x: Latents) -> Tensor:
    return output[:, : x.shape[1]]
