"""The noise schedule: published constants and round trips."""

import math

import pytest
import torch

from pixsigma.config import ScheduleConfig
from pixsigma.diffusion.schedule import Level, NoiseSchedule, per_row
from pixsigma.errors import UnknownNameError

SCHEDULE = NoiseSchedule()


def test_published_constants() -> None:
    assert float(SCHEDULE.alphas_cumprod[999]) == pytest.approx(4.0358e-5, rel=1e-5)
    assert SCHEDULE.level(999).alpha == pytest.approx(0.00635, abs=5e-6)
    assert SCHEDULE.level(999).log_snr == pytest.approx(-5.0588, abs=5e-5)
    assert SCHEDULE.level(0).log_snr == pytest.approx(4.605, abs=5e-4)
    assert SCHEDULE.level(0).sigma == pytest.approx(0.01, abs=1e-6)
    assert float(SCHEDULE.betas[0]) == 1e-4 and float(SCHEDULE.betas[-1]) == 2e-2


def test_scaled_linear_is_that_of_stable_diffusion() -> None:
    config = ScheduleConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert NoiseSchedule(config).level(999).ratio == pytest.approx(14.6146, abs=1e-4)


@pytest.mark.parametrize("t", [0, 1, 137, 500.25, 998.5, 999])
def test_timestep_to_ratio_and_back(t: float) -> None:
    # forth is linear in the ratio and back in its logarithm, which parts them between the points
    assert SCHEDULE.timestep_of(SCHEDULE.ratio_at(t)) == pytest.approx(t, abs=0.01)


@pytest.mark.parametrize("t", [0, 7, 999])
def test_all_readings_agree_at_training_timesteps(t: int) -> None:
    level = SCHEDULE.level(t)
    between = SCHEDULE.level_between(float(t))
    assert between.alpha == pytest.approx(level.alpha)
    assert between.sigma == pytest.approx(level.sigma)
    assert SCHEDULE.ratio_at(t) == pytest.approx(level.ratio)
    again = Level.from_ratio(level.timestep, level.ratio)
    assert (again.alpha, again.sigma) == pytest.approx((level.alpha, level.sigma))


def test_level_between_is_linear_in_log_alpha() -> None:
    low, high = (math.log(SCHEDULE.level(t).alpha) for t in (300, 301))
    expected = 0.7 * low + 0.3 * high
    assert math.log(SCHEDULE.level_between(300.3).alpha) == pytest.approx(expected)


def test_add_noise_is_the_levels_of_its_rows() -> None:
    x0, eps = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 400, 999])
    mixed = SCHEDULE.add_noise(x0, eps, t)
    for row, level in enumerate(SCHEDULE.level(int(each)) for each in t):
        torch.testing.assert_close(mixed[row], level.add_noise(x0[row], eps[row]))


def test_add_noise_keeps_the_dtype() -> None:
    x0 = torch.ones(1, 4, 2, 2, dtype=torch.bfloat16)
    assert SCHEDULE.add_noise(x0, x0, torch.tensor([5])).dtype == torch.bfloat16


def test_per_row_has_the_rank_of_its_partner() -> None:
    rows = per_row(SCHEDULE.betas, torch.tensor([0, 999]), torch.empty(2, 4, 1))
    assert rows.shape == (2, 1, 1) and rows.dtype == torch.float32


def test_noise_free_level() -> None:
    end = Level(0.0, 1.0, 0.0)
    assert end.log_snr == math.inf and end.ratio == 0


def test_unknown_schedule() -> None:
    with pytest.raises(UnknownNameError, match=r"linear, scaled_linear, got 'cosine'"):
        _ = NoiseSchedule(ScheduleConfig(beta_schedule="cosine")).betas
