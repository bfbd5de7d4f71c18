"""The guidance family: each wrapper against its paper's formula, on a toy denoiser."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.doubles import run, seeded_noise
from torch import Tensor

from pixsigma.diffusion.combine import ProjectedUpdate, scale_at
from pixsigma.diffusion.guidance import guided
from pixsigma.diffusion.samplers import DDIM, SAMPLERS, get_sampler
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.diffusion.steering import Clause, Steering, sampler_for, steered
from pixsigma.errors import InputError
from pixsigma.guidance_options import GuidanceOptions
from pixsigma.interfaces import Perturbation, TextFeatures

SCHEDULE = NoiseSchedule()
LEVEL = SCHEDULE.level(600)
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
COND, NULL, OTHER, WEAK = 3.0, 1.0, -2.0, 0.5


def told(value: float, length: int = 3) -> TextFeatures:
    return TextFeatures(torch.full((1, length, 2), value), torch.ones(1, length, dtype=torch.bool))


def answer(value: float, x: Tensor = X) -> Tensor:
    """What the toy says of the text `value`: not linear in it, and of a shape of its own."""
    return torch.sin(value * x) + value * 0.1


class Toy:
    """Eight channels: `answer`, then the variance; remembers how many rows it saw."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.seen: list[Perturbation | None] = []

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        assert mask is not None and len(x) == len(t) == len(text) == len(mask)
        self.rows.append(len(x))
        self.seen.append(perturbation)
        value = text[:, 0, 0].clone()
        if perturbation:
            value[-perturbation.num_rows :] = WEAK
        value = value.view(-1, 1, 1, 1)
        return torch.cat([torch.sin(value * x) + value * 0.1, value.expand_as(x)], dim=1)


def steering(scale: float = 4.0, num_steps: int = 10, **options: Any) -> Steering:
    return Steering(
        options=GuidanceOptions(**options),
        scale=scale,
        texts=((Clause(told(COND)),),) * num_steps,
        nulls=(told(NULL, 5),) * num_steps,
        layers=(1,),
    )


def test_without_options_it_is_classifier_free_guidance() -> None:
    plain = guided(Toy(), told(COND), told(NULL, 5), 4.0)(X, LEVEL)
    ours = steered(Toy(), steering())(0)(X, LEVEL)
    assert torch.equal(ours.eps, plain.eps) and torch.equal(ours.x0, plain.x0)
    assert ours.variance_fraction is not None and plain.variance_fraction is not None
    assert torch.equal(ours.variance_fraction, plain.variance_fraction)


def test_outside_of_the_interval_the_text_goes_alone() -> None:
    toy = Toy()
    at = steered(toy, steering(start=0.2, stop=0.5, pag=2.0))
    found = [at(i)(X, LEVEL).eps for i in range(10)]
    assert toy.rows == [2] * 2 + [6] * 3 + [2] * 5
    torch.testing.assert_close(found[1], answer(COND))
    expected = answer(NULL) + 4 * (answer(COND) - answer(NULL)) + 2 * (answer(COND) - answer(WEAK))
    torch.testing.assert_close(found[2], expected)
    torch.testing.assert_close(found[5], answer(COND))


@pytest.mark.parametrize(
    ("schedule", "halfway"), [("linear", (9.0 + 3.0) / 2), ("cosine", (9.0 + 3.0) / 2)]
)
def test_schedules_run_from_end_to_end(schedule: Any, halfway: float) -> None:
    options = GuidanceOptions(schedule=schedule, end_scale=3.0)
    scales = [scale_at(options, 9.0, i, 11) for i in range(11)]
    assert scales[0] == 9 and scales[-1] == 3
    assert scales[5] == pytest.approx(halfway)
    quarter = 9 - 6 * (0.2 if schedule == "linear" else (1 - math.cos(0.2 * math.pi)) / 2)
    assert scales[2] == pytest.approx(quarter)


def test_a_schedule_that_comes_to_1_needs_no_second_row() -> None:
    toy = Toy()
    at = steered(toy, steering(schedule="linear", end_scale=0.0, num_steps=5))
    for i in range(5):
        at(i)(X, LEVEL)
    assert toy.rows == [4, 4, 4, 2, 2]  # scales 4, 3, 2, 1, 0


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescale_gives_the_spread_of_the_conditional(share: float) -> None:
    """Lin et al. 2023, section 3.4."""
    found = steered(Toy(), steering(rescale=share))(0)(X, LEVEL).eps
    for row in range(2):
        pos, neg = answer(COND)[row], answer(NULL)[row]
        guided_row = neg + 4 * (pos - neg)
        scaled = guided_row * pos.std() / guided_row.std()
        torch.testing.assert_close(found[row], share * scaled + (1 - share) * guided_row)


def clean(value: float) -> Tensor:
    return (X - LEVEL.sigma * answer(value)) / LEVEL.alpha


@pytest.mark.parametrize("norm", [None, 2.5])
@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_projected_guidance_step_by_step(norm: float | None, eta: float) -> None:
    """Sadat et al. 2024, told with vectors."""
    options = {"apg": True, "apg_parallel": eta, "apg_momentum": -0.5, "apg_norm": norm}
    at = steered(Toy(), steering(**options))
    running = torch.zeros_like(X)
    for i in range(3):
        found = at(i)(X, LEVEL)
        running = clean(COND) - clean(NULL) - 0.5 * running
        for row in range(2):
            update, cond = running[row].flatten(), clean(COND)[row].flatten()
            if norm is not None:
                update = update * min(1.0, norm / float(update.norm()))
            unit = cond / cond.norm()
            along = (update @ unit) * unit
            expected = cond + 3 * (update - along + eta * along)
            torch.testing.assert_close(found.x0[row].flatten(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(LEVEL.add_noise(found.x0, found.eps), X)


def test_projected_guidance_whole_and_without_memory_is_the_plain_one() -> None:
    options = {"apg": True, "apg_parallel": 1.0, "apg_momentum": 0.0}
    found = steered(Toy(), steering(**options, seg=2.0))(0)(X, LEVEL)
    plain = steered(Toy(), steering(seg=2.0))(0)(X, LEVEL)
    torch.testing.assert_close(found.x0, plain.x0, rtol=1e-4, atol=1e-4)


def test_a_new_drawing_has_no_memory() -> None:
    plan = steering(apg=True)
    first = steered(Toy(), plan)(0)(X, LEVEL)
    assert torch.equal(steered(Toy(), plan)(0)(X, LEVEL).x0, first.x0)
    project = ProjectedUpdate(plan.options)
    once, again = (project(clean(COND), clean(NULL)) for _ in range(2))
    assert not torch.allclose(once, again)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_cfgpp_noises_again_with_the_unconditional_eps(sampler: str) -> None:
    """Chung et al. 2024: x0 from the mixed eps, the next x with the unconditional."""
    weight, levels = 0.6, get_sampler(sampler).levels(SCHEDULE, 4)
    at = steered(Toy(), steering(cfgpp=weight, num_steps=4))
    x = X
    state = get_sampler(sampler).init(x, levels)
    for i, (start, end) in enumerate(pairwise(levels)):
        null = answer(NULL, x)
        mixed = null + weight * (answer(COND, x) - null)
        expected = end.alpha * (x - start.sigma * mixed) / start.alpha + end.sigma * null
        x, state = get_sampler(sampler).step(
            at(i), state, x, levels, i, seeded_noise(X.shape, seed=0)
        )
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_cfgpp_is_refused_where_it_is_not_defined() -> None:
    options = GuidanceOptions(cfgpp=0.6)
    fine = {"ddim", "euler", "euler-a"}
    for name, sampler in SAMPLERS.items():
        assert sampler_for(name, 0.0, GuidanceOptions()) == sampler
        if name in fine:
            sampler_for(name, 0.0, options)
        else:
            with pytest.raises(InputError, match="take ddim, euler or euler-a"):
                sampler_for(name, 0.0, options)


def test_eta_is_of_ddim_and_refused_elsewhere() -> None:
    assert sampler_for("ddim", 0.5, GuidanceOptions()) == DDIM(eta=0.5)
    for name in sorted(SAMPLERS.keys() - {"ddim"}):
        with pytest.raises(InputError, match=f"of ddim, {re.escape(name)} has none; got 0.5"):
            sampler_for(name, 0.5, GuidanceOptions())


@pytest.mark.parametrize("name", ["pag", "seg"])
def test_disturbed_guidance_without_a_scale(name: str) -> None:
    toy = Toy()
    found = steered(toy, steering(scale=1.0, **{name: 3.0}))(0)(X, LEVEL)
    expected = answer(COND) + 3 * (answer(COND) - answer(WEAK))
    torch.testing.assert_close(found.eps, expected)
    assert toy.rows == [4]
    kind = "identity" if name == "pag" else "blur"
    assert toy.seen == [Perturbation(kind=kind, layers=(1,), num_rows=2)]
    assert found.variance_fraction is not None
    torch.testing.assert_close(found.variance_fraction, torch.full_like(X, COND))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_clauses_are_composed(scale: float) -> None:
    """Liu et al. 2022."""
    clauses = (Clause(told(COND)), Clause(told(OTHER, 7), 0.5))
    plan = Steering(options=GuidanceOptions(), scale=scale, texts=(clauses,), nulls=(told(NULL),))
    toy = Toy()
    found = steered(toy, plan)(0)(X, LEVEL).eps
    updates = answer(COND) - answer(NULL) + 0.5 * (answer(OTHER) - answer(NULL))
    torch.testing.assert_close(found, answer(NULL) + scale * updates)
    assert toy.rows == [6]


def test_each_step_has_its_text() -> None:
    texts = tuple((Clause(told(value)),) for value in (COND, OTHER))
    nulls = (told(NULL), told(WEAK))
    plan = Steering(options=GuidanceOptions(), scale=2.0, texts=texts, nulls=nulls)
    at = steered(Toy(), plan)
    torch.testing.assert_close(at(0)(X, LEVEL).eps, 2 * answer(COND) - answer(NULL))
    torch.testing.assert_close(at(1)(X, LEVEL).eps, 2 * answer(OTHER) - answer(WEAK))


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_takes_it(name: str) -> None:
    sampler = SAMPLERS[name]
    levels = sampler.levels(SCHEDULE, 5)
    predict = steered(Toy(), steering(num_steps=5, apg=True, start=0.2, pag=1.0))(2)
    x = run(sampler, predict, X, levels, seeded_noise(X.shape, seed=1))
    assert torch.isfinite(x).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 0.5, "stop": 0.5}, "start before it stops, got 0.5 to 0.5"),
        ({"pag": 1.0, "seg": 1.0}, "both disturb self-attention"),
        ({"layers": (1,)}, "layers does nothing without pag or seg"),
        ({"seg_blur": 2.0, "pag": 1.0}, "seg_blur does nothing without seg"),
        ({"apg_norm": 2.0}, "apg_norm does nothing without apg"),
        ({"end_scale": 2.0}, "end_scale does nothing without schedule"),
        ({"apg": True, "rescale": 0.5}, "both tame"),
        ({"cfgpp": 0.5, "pag": 1.0, "schedule": "linear"}, "leave out schedule and pag, or cfgpp"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GuidanceOptions(**options)
