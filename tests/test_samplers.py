"""Every sampler of the one table: what theory promises, on data whose denoiser is known exactly."""

import dataclasses
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from doubles import MEAN, STD, Mixture, gaussian, gaussian_flow, run, seeded_noise
from pixsigma.diffusion import grids
from pixsigma.diffusion.prediction import Prediction, from_x0
from pixsigma.diffusion.samplers import (
    DDIM,
    DDPM,
    SAMPLERS,
    DPMSinglestep,
    DPMSolver,
    SASolver,
    UniPC,
    get_sampler,
)
from pixsigma.diffusion.samplers.sa_solver import _weights
from pixsigma.diffusion.schedule import Level, NoiseSchedule
from pixsigma.errors import InputError, UnknownNameError

SCHEDULE = NoiseSchedule()
SHAPE = (2, 4, 8, 8)
STOCHASTIC = {"dpm++2m-sde", "sa", "sa-authors", "ddpm", "iddpm", "euler-a", "lcm"}
# the published third-order multistep update takes half of the second derivative
CONVERGES = {name: sampler.order for name, sampler in SAMPLERS.items()} | {"dpm++3m": 2}
# the SA solvers follow the ODE outside their window
ODES = [name for name in SAMPLERS if name not in STOCHASTIC] + ["sa", "sa-authors"]


def no_noise() -> Tensor:
    raise AssertionError("a deterministic sampler drew noise")


def smooth_grid(num_steps: int) -> tuple[Level, ...]:
    """Log-SNR from -4 to 2 with short steps at both ends, where orders are lowered."""
    u = np.linspace(0, 1, num_steps + 1)
    return tuple(Level.from_ratio(0.0, math.exp(4 - 6 * v)) for v in u * u * (3 - 2 * u))


@pytest.mark.parametrize("name", ODES)
def test_order_of_convergence(name: str) -> None:
    x = seeded_noise(SHAPE, 0, torch.float64)()
    counts, errors = (24, 48, 96), []
    for count in counts:
        levels = smooth_grid(count)
        end = run(SAMPLERS[name], gaussian, x, levels, seeded_noise(SHAPE, 1, torch.float64))
        errors.append(float((end - gaussian_flow(x, levels[0], levels[-1])).norm() / end.norm()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert CONVERGES[name] - 0.2 <= slope <= CONVERGES[name] + 1.0
    assert errors[-1] < 0.02


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
def test_samples_have_the_moments_of_the_data(name: str) -> None:
    sampler = SAMPLERS[name]
    levels = sampler.levels(SCHEDULE, 250)
    noise = seeded_noise((64, 4, 8, 8), 3)
    start = sampler.start(noise(), levels)
    plain = run(sampler, gaussian, start, levels, noise)
    assert abs(plain.mean() - MEAN) < 0.015 and abs(plain.std() - STD) < 0.02
    mixture = Mixture()
    mixed = run(sampler, mixture.predict, start, levels, noise)
    mean, std = mixture.moments
    assert abs(mixed.mean() - mean) < 0.02 and abs(mixed.std() - std) < 0.02
    assert abs((mixed > 0.6).float().mean() - 1 / 3) < 0.03


@pytest.mark.parametrize("name", SAMPLERS)
def test_known_data_keeps_the_noise_of_each_level(name: str) -> None:
    """With one possible picture, old and fresh noise must add up to the next level's variance."""
    sampler, point = SAMPLERS[name], 0.7

    def predict(x: Tensor, level: Level) -> Prediction:
        exact = from_x0(torch.full_like(x, point), x, level)
        return Prediction(exact.x0, exact.eps, torch.full_like(x, -1.0))

    levels = sampler.levels(SCHEDULE, 20)[:10]
    ends = []
    for old, fresh in ((1.0, 0.0), (0.0, 1.0)):
        x = torch.full((1, 1, 1, 1), levels[5].add_noise(point, old), dtype=torch.float64)
        noise = torch.full_like(x, fresh)
        state = sampler.init(x, levels)
        moved, _ = sampler.step(predict, state, x, levels, 5, partial(torch.clone, noise))
        ends.append(float(moved) - levels[6].alpha * point)
    assert math.hypot(*ends) == pytest.approx(levels[6].sigma, rel=1e-3 if name == "lcm" else 1e-9)
    assert (abs(ends[1]) > 1e-9) == (name in STOCHASTIC)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_depend_on_its_neighbours(name: str) -> None:
    sampler = SAMPLERS[name]
    levels = sampler.levels(SCHEDULE, 6)
    mixture = Mixture()

    def sampled(seeds: list[int]) -> Tensor:
        each = [seeded_noise((1, 4, 8, 8), seed) for seed in seeds]

        def noise() -> Tensor:
            return torch.cat([one() for one in each])

        return run(sampler, mixture.predict, sampler.start(noise(), levels), levels, noise)

    assert torch.equal(sampled([1, 2, 3])[1:2], sampled([2]))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in STOCHASTIC])
def test_deterministic_samplers_draw_nothing(name: str) -> None:
    levels = SAMPLERS[name].levels(SCHEDULE, 4)
    end = run(SAMPLERS[name], gaussian, torch.ones(1, 1, 2, 2), levels, no_noise)
    assert end.isfinite().all()


@pytest.mark.parametrize("num_steps", [2, 3, 7, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_lose_noise_steadily(name: str, num_steps: int) -> None:
    levels = SAMPLERS[name].levels(SCHEDULE, num_steps)
    assert len(levels) == num_steps + 1
    assert all(a.ratio > b.ratio and a.timestep >= b.timestep for a, b in pairwise(levels))
    assert all(0 <= level.timestep <= 999 for level in levels)
    assert all(math.hypot(level.alpha, level.sigma) == pytest.approx(1) for level in levels)


@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        (name, spacing)
        for name in SAMPLERS
        for spacing in grids.SPACINGS
        if name != "lcm"
        and not spacing.startswith("lcm")
        # SA's published corrector overshoots where it corrects a last long step
        and not (name.startswith("sa") and spacing == "iddpm")
    ],
)
def test_any_sampler_on_any_spacing(name: str, spacing: str) -> None:
    sampler = dataclasses.replace(SAMPLERS[name], spacing=spacing)  # type: ignore[type-var]
    levels = sampler.levels(SCHEDULE, 30)
    noise = seeded_noise(SHAPE, 5)
    end = run(sampler, gaussian, sampler.start(noise(), levels), levels, noise)
    assert len(levels) == 31
    assert abs(end.mean() - MEAN) < 0.1 and abs(end.std() - STD) < 0.2


def test_sa_weights_are_integrals_of_the_interpolation() -> None:
    h, stretch, nodes = 0.6, 2.0, [0.0, -0.6, -1.1]
    u = np.linspace(-h, 0, 20001)
    for k, weight in enumerate(_weights(nodes, h, stretch)):
        basis = np.prod([(u - n) / (nodes[k] - n) for j, n in enumerate(nodes) if j != k], axis=0)
        expected = np.trapezoid(stretch * np.exp(stretch * u) * basis, u)
        assert weight == pytest.approx(expected, abs=1e-8)


def test_sa_weights_of_order_two_carry_the_published_term() -> None:
    h, before, stretch = 0.5, 0.4, 2.0
    newest, older = _weights([-h, -h - before], h, stretch)
    plain = 1 - math.exp(-stretch * h)
    assert newest + older == pytest.approx(plain)
    # the slope is weighted by h²/2 · stretch in place of the exact integral
    assert -older * before == pytest.approx(stretch * h * h / 2)


def test_sa_of_the_authors_draws_once_in_vain_and_ends_without_noise() -> None:
    drawn = 0

    def noise() -> Tensor:
        nonlocal drawn
        drawn += 1
        return torch.zeros(1, 1, 2, 2)

    sampler = SAMPLERS["sa-authors"]
    levels = sampler.levels(SCHEDULE, 8)
    run(sampler, gaussian, torch.ones(1, 1, 2, 2), levels, noise)
    assert drawn == 9
    assert isinstance(sampler, SASolver)
    assert sampler._tau(levels, len(levels) - 2) == 0
    # tau is read at the end of a step: 874 to 749 is stochastic, 999 to 874 is not
    assert [sampler._tau(levels, i) for i in range(3)] == [0.0, 1.0, 1.0]
    assert [SASolver()._tau(levels, i) for i in range(3)] == [0.0, 0.0, 1.0]


def test_authors_solver_ends_at_order_one_for_any_number_of_steps() -> None:
    authors, levels = SAMPLERS["dpm++2m-authors"], SAMPLERS["dpm++2m-authors"].levels(SCHEDULE, 20)
    assert isinstance(authors, DPMSolver)
    assert [authors._order_at(i, levels) for i in (1, 18, 19)] == [2, 2, 1]
    ended = DPMSolver(final="sigma_min")
    assert ended._order_at(19, levels) == 2
    assert ended._order_at(13, levels[:15]) == 1


def test_lcm_draws_from_the_data_with_a_consistency_function() -> None:
    """What distillation aims at: the end of the ODE from any level, in one jump."""

    def consistent(x: Tensor, level: Level) -> Prediction:
        return from_x0(gaussian_flow(x, level, Level(0.0, 1.0, 0.0)), x, level)

    sampler = SAMPLERS["lcm"]
    levels = sampler.levels(SCHEDULE, 4)
    noise = seeded_noise((64, 4, 8, 8), 3)
    end = run(sampler, consistent, noise(), levels, noise)
    assert abs(end.mean() - MEAN) < 0.015 and abs(end.std() - STD) < 0.01


def test_iddpm_uses_the_learned_variance() -> None:
    sampler = SAMPLERS["iddpm"]
    levels = sampler.levels(SCHEDULE, 10)
    x = torch.zeros(1, 1, 1, 2, dtype=torch.float64)

    def predict(x: Tensor, level: Level) -> Prediction:
        return Prediction(x, x, torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2))

    moved, _ = sampler.step(predict, None, x, levels, 3, lambda: torch.ones_like(x))
    bars = [float(SCHEDULE.alphas_cumprod[int(levels[i].timestep)]) for i in (3, 4)]
    beta = 1 - bars[0] / bars[1]
    small, large = (float(v) ** 2 for v in moved.flatten())
    assert large == pytest.approx(beta, rel=1e-6)
    assert small == pytest.approx(beta * (1 - bars[1]) / (1 - bars[0]), rel=1e-6)


def test_iddpm_wants_a_learned_variance() -> None:
    levels = SAMPLERS["iddpm"].levels(SCHEDULE, 4)
    x = torch.ones(1, 4, 2, 2)

    def predict(x: Tensor, level: Level) -> Prediction:
        return from_x0(x, x, level)

    with pytest.raises(InputError, match="take the sampler 'ddpm'"):
        run(SAMPLERS["iddpm"], predict, x, levels, lambda: x)


def test_a_repeated_last_level_changes_nothing() -> None:
    levels = (SCHEDULE.level(400), SCHEDULE.level(100), SCHEDULE.level(0), SCHEDULE.level(0))
    x = seeded_noise(SHAPE, 2)()
    for sampler in (DPMSolver(order=3), DPMSinglestep(order=3), UniPC(), SASolver()):
        assert run(sampler, gaussian, x, levels, seeded_noise(SHAPE, 3)).isfinite().all()


def test_unknown_names_tell_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'dmp\+\+2m'.*did you mean dpm\+\+2m"):
        get_sampler("dmp++2m")
    with pytest.raises(UnknownNameError, match="known are"):
        get_sampler("")
    assert get_sampler("ddim") is SAMPLERS["ddim"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: DPMSolver(order=4),
        lambda: DPMSolver(order=3, algorithm="sde-dpmsolver++"),
        lambda: DPMSolver(algorithm="dpmsolver"),
        lambda: DPMSinglestep(solver_type="bh2"),
        lambda: DPMSolver(spacing="beta"),
        lambda: DPMSolver(final="one"),
        lambda: UniPC(order=4),
        lambda: UniPC(solver_type="midpoint"),
        lambda: SASolver(order=0),
        lambda: SASolver(tau=-1.0),
        lambda: DDIM(eta=2.0),
        lambda: DDPM(variance="large"),
    ],
)
def test_what_cannot_be_is_refused(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
