"""The training loss against formulas written a second time, from distributions and by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pixsigma.config import ScheduleConfig
from pixsigma.diffusion.loss import min_snr_weight, training_loss
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError

SCHEDULE = NoiseSchedule()
KINDS = ["epsilon", "sample", "v_prediction"]


def batch(*timesteps: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """output (with variance), x0, eps, x, t; x0 reaches beyond the outer bins."""
    torch.manual_seed(0)
    shape = (len(timesteps), 4, 6, 6)
    x0, eps = torch.randn(shape), torch.randn(shape)
    t = torch.tensor(timesteps)
    output = torch.cat([eps + 0.1 * torch.randn(shape), torch.rand(shape) * 2 - 1], dim=1)
    return output, x0, eps, SCHEDULE.add_noise(x0, eps, t), t


def posterior(bar: float, before: float) -> tuple[float, float, float, float]:
    """Precision-weighted product of q(x_t | x_t-1) and q(x_t-1 | x0), and beta."""
    alpha = bar / before
    beta = 1 - alpha
    variance = 1 / (alpha / beta + 1 / (1 - before)) if before < 1 else 0.0
    weight_x = variance * math.sqrt(alpha) / beta
    weight_x0 = variance * math.sqrt(before) / (1 - before) if before < 1 else 1.0
    return weight_x0, weight_x, variance, beta


@pytest.mark.parametrize("t", [1, 2, 400, 999])
def test_bound_is_the_divergence_of_two_normals(t: int) -> None:
    output, x0, eps, x, _ = batch(t)
    bars = [float(SCHEDULE.alphas_cumprod[i]) for i in (t, t - 1)]
    weight_x0, weight_x, variance, beta = posterior(*bars)
    x, x0, output = x.double(), x0.double(), output.double()
    guess = (x - math.sqrt(1 - bars[0]) * output[:, :4]) / math.sqrt(bars[0])
    share = (output[:, 4:] + 1) / 2
    std = (0.5 * (share * math.log(beta) + (1 - share) * math.log(variance))).exp()
    truth = Normal(weight_x0 * x0 + weight_x * x, math.sqrt(variance))
    model = Normal(weight_x0 * guess + weight_x * x, std)
    expected = kl_divergence(truth, model).mean() / math.log(2)
    found = training_loss(*batch(t), SCHEDULE)
    assert float(found.vb[0]) == pytest.approx(float(expected), rel=2e-3)
    assert float(found.mse[0]) == pytest.approx(float(((output[:, :4] - eps) ** 2).mean()))
    assert float(found.total[0]) == float(found.mse[0] + found.vb[0])


def page(z: float) -> float:
    return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def test_first_timestep_is_the_likelihood_of_a_bin() -> None:
    output, x0, _, x, _ = batch(0)
    x0[0, 0, 0, :3] = torch.tensor([-1.0, 0.0, 1.0])
    bar = float(SCHEDULE.alphas_cumprod[0])
    small = posterior(float(SCHEDULE.alphas_cumprod[1]), bar)[2]
    total = 0.0
    columns = zip(
        output[0, :4].flatten().tolist(),
        output[0, 4:].flatten().tolist(),
        x0.flatten().tolist(),
        x.flatten().tolist(),
        strict=True,
    )
    for eps_hat, v, clean, noisy in columns:
        mean = (noisy - math.sqrt(1 - bar) * eps_hat) / math.sqrt(bar)
        share = (v + 1) / 2
        std = math.exp(0.5 * (share * math.log(1e-4) + (1 - share) * math.log(small)))
        above = 1.0 if clean > 0.999 else page((clean - mean + 1 / 255) / std)
        below = 0.0 if clean < -0.999 else page((clean - mean - 1 / 255) / std)
        total -= math.log2(max(above - below, 1e-12))
    found = training_loss(output, x0, torch.zeros_like(x0), x, torch.tensor([0]), SCHEDULE)
    assert float(found.vb[0]) == pytest.approx(total / x0.numel(), rel=1e-3)


def test_samples_do_not_mix() -> None:
    together = training_loss(*batch(0, 17, 999), SCHEDULE)
    output, x0, eps, x, t = batch(0, 17, 999)
    for row in range(3):
        one = slice(row, row + 1)
        alone = training_loss(output[one], x0[one], eps[one], x[one], t[one], SCHEDULE)
        torch.testing.assert_close(together.vb[one], alone.vb)
        torch.testing.assert_close(together.mse[one], alone.mse)


def test_bound_trains_the_variance_and_not_the_mean() -> None:
    output, x0, eps, x, t = batch(0, 300)
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(
        training_loss(output, x0, eps, x, t, SCHEDULE).vb.sum(), output
    )
    assert (gradient[:, :4] == 0).all()
    assert (gradient[1, 4:] != 0).all()


def test_perfect_prediction_costs_nothing() -> None:
    _, x0, eps, x, t = batch(1, 500)
    exact = torch.cat([eps, torch.full_like(eps, -1.0)], dim=1)
    found = training_loss(exact, x0, eps, x, t, SCHEDULE)
    assert (found.mse == 0).all()
    assert (found.vb.abs() < 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_targets_of_every_parameterisation(kind: str) -> None:
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=kind))
    _, x0, eps, x, t = batch(3, 700)
    levels = [schedule.level(int(each)) for each in t]
    v = torch.stack(
        [level.alpha * e - level.sigma * c for level, e, c in zip(levels, eps, x0, strict=True)]
    )
    exact = {"epsilon": eps, "sample": x0, "v_prediction": v}[kind]
    output = torch.cat([exact, torch.full_like(eps, -1.0)], dim=1)
    found = training_loss(output, x0, eps, x, t, schedule)
    assert (found.mse < 1e-10).all()
    assert (found.vb.abs() < 1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights_are_one_loss_on_x0(kind: str) -> None:
    """All parameterisations weigh the error of x0 by min(SNR, 5)."""
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=kind))
    t = torch.tensor([0, 250, 600, 999])
    snr = (schedule.alphas_cumprod / (1 - schedule.alphas_cumprod))[t]
    # one unit of error in x0, in units of what is predicted
    unit = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}[kind]
    weights = min_snr_weight(t, schedule, 5.0).double()
    torch.testing.assert_close(weights * unit, snr.clamp(max=5.0), rtol=1e-5, atol=0)


def test_min_snr_weighs_the_error_only() -> None:
    plain = training_loss(*batch(0, 500), SCHEDULE)
    weighed = training_loss(*batch(0, 500), SCHEDULE, min_snr_gamma=5.0)
    expected = plain.mse * torch.tensor([5e-4 / 0.9999 * 1.0, 1.0])
    torch.testing.assert_close(weighed.mse, expected, rtol=1e-3, atol=0)
    assert torch.equal(plain.vb, weighed.vb)


def test_without_learned_variance_there_is_no_bound() -> None:
    output, x0, eps, x, t = batch(5)
    found = training_loss(output[:, :4], x0, eps, x, t, SCHEDULE)
    assert (found.vb == 0).all() and torch.equal(found.total, found.mse)


def test_half_precision_is_computed_in_full() -> None:
    output, x0, eps, x, t = batch(500)
    found = training_loss(output.bfloat16(), x0, eps, x, t, SCHEDULE)
    assert found.mse.dtype == found.vb.dtype == torch.float32


def test_wrong_number_of_channels() -> None:
    output, x0, eps, x, t = batch(5)
    with pytest.raises(InputError, match="4 channels, or 8"):
        training_loss(output[:, :6], x0, eps, x, t, SCHEDULE)
