"""Grids: numbers known from the published systems, and what is refused."""

from itertools import pairwise

import pytest

from pixsigma.config import ScheduleConfig
from pixsigma.diffusion import grids
from pixsigma.diffusion.samplers import SAMPLERS
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError, UnknownNameError

SCHEDULE = NoiseSchedule()


def timesteps(name: str, num_steps: int) -> list[float]:
    return [level.timestep for level in SAMPLERS[name].levels(SCHEDULE, num_steps)]


def test_grid_of_the_authors() -> None:
    found = timesteps("dpm++2m-authors", 14)
    expected = [999, 927.643, 856.286]
    assert found[:3] == pytest.approx(expected, abs=5e-4)
    assert found[-2:] == pytest.approx([71.357, 0], abs=5e-4)
    end = SAMPLERS["dpm++2m-authors"].levels(SCHEDULE, 14)[-1]
    assert end.sigma == pytest.approx(0.01, abs=1e-6)


def test_grid_of_the_published_scheduler() -> None:
    assert timesteps("dpm++2m", 5) == [999, 799, 599, 400, 200, 0]
    assert SAMPLERS["dpm++2m"].levels(SCHEDULE, 5)[-1].sigma == 0


def test_grid_of_consistency_models() -> None:
    assert timesteps("lcm", 4)[:4] == [999, 759, 519, 279]
    assert grids.lcm(1000, 4, even=True) == [999, 759, 499, 259]
    with pytest.raises(InputError, match="50"):
        grids.lcm(1000, 51)


def test_respacing_of_iddpm() -> None:
    assert timesteps("iddpm", 10)[:10] == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert timesteps("iddpm", 1000)[:1000] == list(range(999, -1, -1))


def test_align_your_steps_is_its_table_at_ten() -> None:
    assert grids.align_your_steps(10) == [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
    twenty = grids.align_your_steps(20)
    assert twenty[0] == 999 and twenty[-1] == 13 and len(set(twenty)) == 20


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_noise_spacings_span_the_schedule(spacing: str) -> None:
    levels = grids.spaced(SCHEDULE, 7, spacing, final="sigma_min")
    assert levels[0].ratio == pytest.approx(SCHEDULE.level(999).ratio)
    assert levels[-2].ratio == pytest.approx(SCHEDULE.level(0).ratio)
    assert levels[-1] == SCHEDULE.level(0)


def test_karras_is_even_in_the_seventh_root() -> None:
    roots = [ratio ** (1 / 7) for ratio in grids.karras(SCHEDULE, 5)]
    steps = [a - b for a, b in pairwise(roots)]
    assert steps == pytest.approx([steps[0]] * 4)


def test_other_lengths_of_training() -> None:
    short = NoiseSchedule(ScheduleConfig(num_train_timesteps=100))
    assert grids.spaced(short, 4, "linspace")[0].timestep == 99
    assert grids.authors(short, 9)[0].timestep == pytest.approx(99)


def test_given_timesteps_and_sigmas() -> None:
    levels = grids.from_timesteps(SCHEDULE, [400])
    assert levels[0].alpha == pytest.approx(SCHEDULE.level(400).alpha)
    assert levels[1].sigma == 0
    levels = grids.from_ratios(SCHEDULE, [SCHEDULE.level(500).ratio, 1.0, 0.0])
    assert levels[0].timestep == pytest.approx(500)
    assert [level.ratio for level in levels[1:]] == [1.0, 0.0]


@pytest.mark.parametrize("bad", [[], [10, 10], [10, 20], [1000], [10, -1]])
def test_timesteps_must_fall_inside_the_schedule(bad: list[float]) -> None:
    with pytest.raises(InputError, match="timesteps must fall"):
        grids.from_timesteps(SCHEDULE, bad)


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, 2.0], [1.0, -0.1]])
def test_sigmas_must_fall(bad: list[float]) -> None:
    with pytest.raises(InputError, match="sigmas must"):
        grids.from_ratios(SCHEDULE, bad)


def test_either_timesteps_or_sigmas() -> None:
    sampler = SAMPLERS["euler"]
    with pytest.raises(InputError, match="either"):
        sampler.levels_at(SCHEDULE)
    with pytest.raises(InputError, match="either"):
        sampler.levels_at(SCHEDULE, [999.0], [1.0, 0.0])


@pytest.mark.parametrize(
    ("spacing", "num_steps"), [("linspace", 0), ("linspace", 1001), ("authors", 1)]
)
def test_number_of_steps_is_checked(spacing: str, num_steps: int) -> None:
    with pytest.raises(InputError, match=f"num_inference_steps must be .* got {num_steps}"):
        grids.spaced(SCHEDULE, num_steps, spacing)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_as_many_steps_as_were_trained_are_taken_or_refused_in_one_line(sampler: str) -> None:
    try:
        levels = SAMPLERS[sampler].levels(SCHEDULE, 1000)
    except InputError as error:
        assert "num_inference_steps must be" in str(error) or "distilled" in str(error)
        assert len(str(error)) < 200
    else:
        assert len(levels) == 1001


def test_unknown_spacing_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match=r"karras.*got 'sigmoid'"):
        grids.spaced(SCHEDULE, 5, "sigmoid")
