"""The training loss: mean squared error, and the variational bound that trains the variance."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pixsigma.diffusion.schedule import NoiseSchedule, per_row
from pixsigma.errors import InputError
from pixsigma.shapes import Latents

_HALF_BIN = 1 / 255


@dataclass(frozen=True)
class LossTerms:
    """Loss of each sample, (B,), float32."""

    mse: Tensor
    """Mean squared error of what the network predicts, weighted where asked."""
    vb: Tensor
    """Variational bound in bits a dimension; 0 where the variance is not learned."""

    @property
    def total(self) -> Tensor:
        """(B,): what is minimised, the sum."""
        return self.mse + self.vb


def training_loss(
    output: Tensor,
    x0: Latents,
    eps: Latents,
    x: Latents,
    t: Tensor,
    schedule: NoiseSchedule,
    *,
    min_snr_gamma: float | None = None,
    weights: Tensor | None = None,
) -> LossTerms:
    """Loss of the network's `output` (B, C or 2C, H, W) at `x = schedule.add_noise(x0, eps, t)`.

    The hybrid loss of Nichol & Dhariwal 2021 (eq. 16) with weight 1 and the bound in bits, as
    PixArt was trained; t (B,) int64. `min_snr_gamma` weights the squared error (Hang et al. 2023),
    `weights` (B, 1, H, W) its places: it is a mean over what counts. The bound stays whole.
    Raises InputError for an output that has neither C nor 2C channels.
    """
    channels = x0.shape[1]
    if output.shape[1] not in (channels, 2 * channels):
        raise InputError(
            f"the loss needs {channels} channels, or {2 * channels} with a learned variance, "
            f"got {output.shape[1]}"
        )
    output, x0, eps, x = (each.float() for each in (output, x0, eps, x))
    mean, variance = output[:, :channels], output[:, channels:]
    square = (mean - target(x0, eps, t, schedule)) ** 2
    mse = _flat_mean(square) if weights is None else _weighted_mean(square, weights)
    if min_snr_gamma is not None:
        mse = mse * min_snr_weight(t, schedule, min_snr_gamma).to(mse)
    if variance.shape[1] == 0:
        return LossTerms(mse, torch.zeros_like(mse))
    x0_hat = x0_from(mean.detach(), x, t, schedule)
    return LossTerms(mse, variational_bound(x0_hat, variance, x0, x, t, schedule))


def target(x0: Latents, eps: Latents, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """What the network should predict: eps, x0 or v = alpha eps - sigma x0."""
    kind = schedule.config.prediction_type
    if kind == "v_prediction":
        alpha, sigma = _shares(t, schedule, x0)
        return alpha * eps - sigma * x0
    return eps if kind == "epsilon" else x0


def x0_from(mean: Tensor, x: Latents, t: Tensor, schedule: NoiseSchedule) -> Latents:
    """The clean latents that a prediction at timesteps `t` (B,) means."""
    kind = schedule.config.prediction_type
    if kind == "sample":
        return mean
    alpha, sigma = _shares(t, schedule, x)
    return (x - sigma * mean) / alpha if kind == "epsilon" else alpha * x - sigma * mean


def min_snr_weight(t: Tensor, schedule: NoiseSchedule, gamma: float) -> Tensor:
    """(B,): min(SNR, gamma) for x0; over SNR for eps, over SNR + 1 for v (Hang et al. 2023)."""
    snr = per_row(schedule.ratios**-2, t, torch.empty(len(t), device=t.device))
    clipped = snr.clamp(max=gamma)
    kind = schedule.config.prediction_type
    return clipped / {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}[kind]


def variational_bound(
    x0_hat: Latents, fraction: Tensor, x0: Latents, x: Latents, t: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """(B,) bits a dimension: KL(q(x_{t-1} | x_t, x0) || p), at t = 0 the likelihood of x0.

    `fraction` in [-1, 1] runs from the posterior log variance to log beta (Nichol & Dhariwal 2021,
    eq. 15). At t = 0 a bin is 1/255 each way, as for 8-bit pictures; PixArt takes latents as such.
    """
    clean, noisy, log_small, log_large = (per_row(c, t, x) for c in _posterior(schedule))
    share = (fraction + 1) / 2
    log_var = share * log_large + (1 - share) * log_small
    true_mean = clean * x0 + noisy * x
    mean = clean * x0_hat + noisy * x
    distance = (true_mean - mean) ** 2 * torch.exp(-log_var)
    kl = 0.5 * (log_var - log_small + torch.exp(log_small - log_var) - 1 + distance)
    nll = -_log_likelihood(x0, mean, torch.exp(-0.5 * log_var))
    return torch.where(t.to(x.device) == 0, _flat_mean(nll), _flat_mean(kl)) / math.log(2)


def _posterior(schedule: NoiseSchedule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(T,) each: weights of x0 and x_t in the mean, log of the posterior variance, log beta.

    Ho et al. 2020, eq. 7. The posterior variance at t = 0 is 0; its log is that of t = 1.
    """
    betas, bars = schedule.betas, schedule.alphas_cumprod
    before = torch.cat([torch.ones_like(bars[:1]), bars[:-1]])
    variance = betas * (1 - before) / (1 - bars)
    log_small = torch.cat([variance[1:2], variance[1:]]).log()
    clean = betas * before.sqrt() / (1 - bars)
    noisy = (1 - before) * (1 - betas).sqrt() / (1 - bars)
    return clean, noisy, log_small, betas.log()


def _log_likelihood(x0: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    """log of a Gaussian's mass in the bin of `x0`, the outer bins open (Ho et al. 2020, eq. 13)."""
    upper = _cdf(inverse_std * (x0 - mean + _HALF_BIN))
    lower = _cdf(inverse_std * (x0 - mean - _HALF_BIN))
    upper = torch.where(x0 > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x0 < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()


def _cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the normal distribution function (Page 1977), as published."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _shares(t: Tensor, schedule: NoiseSchedule, like: Tensor) -> tuple[Tensor, Tensor]:
    bars = schedule.alphas_cumprod
    return per_row(bars.sqrt(), t, like), per_row((1 - bars).sqrt(), t, like)


def _weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    """(B,); 0 where nothing counts."""
    counted = weights.flatten(1).sum(dim=1) * x.shape[1]
    return (x * weights).flatten(1).sum(dim=1) / counted.clamp(min=1e-6)


def _flat_mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(dim=1)
