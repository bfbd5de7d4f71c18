"""One training step's loss: noise, predict, compare."""

import torch
from torch import Tensor

from pixsigma.data.features import Batch
from pixsigma.diffusion.loss import training_loss
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.interfaces import Denoiser
from pixsigma.training.sections import LossSection


def draw_timesteps(
    num: int, schedule: NoiseSchedule, how: str, rng: torch.Generator, shift: float = 1.0
) -> Tensor:
    """(num,) int64: independent and uniform, or one in each of `num` equal parts (stratified).

    "logit-normal" is the sigmoid of a normal number (Esser et al. 2024, m = 0, s = 1). A share u of
    the schedule becomes s u / (1 + (s - 1) u) with a shift of s (eq. 23 there).
    """
    u = torch.rand(num, generator=rng)
    if how == "stratified":
        u = (torch.arange(num) + u) / num
    if how == "logit-normal":
        u = torch.randn(num, generator=rng).sigmoid()
    u = shift * u / (1 + (shift - 1) * u)
    # float32 rounding may give exactly 1
    last = schedule.config.num_train_timesteps - 1
    return (u * (last + 1)).long().clamp(max=last)


def draw_noise(shape: torch.Size, offset: float, rng: torch.Generator) -> Tensor:
    """Normal noise (B, C, H, W), plus `offset` times a number that each channel has for itself."""
    eps = torch.randn(shape, generator=rng)
    if offset:
        eps += offset * torch.randn(*shape[:2], 1, 1, generator=rng)
    return eps


def loss_of_batch(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    batch: Batch,
    section: LossSection,
    rng: torch.Generator,
) -> Tensor:
    """Losses of each picture (B,): noise it, let the network predict, compare.

    Random numbers are drawn on the CPU, so that a run is the same on every device.
    """
    x0 = batch.latents
    drawn = draw_timesteps(len(x0), schedule, section.timesteps, rng, section.timestep_shift)
    t = drawn.to(x0.device)
    eps = draw_noise(x0.shape, section.noise_offset, rng).to(x0.device)
    return loss_at(
        denoiser,
        schedule,
        batch,
        t,
        eps,
        min_snr_gamma=section.min_snr_gamma,
        outside_mask=section.outside_mask,
    )


def loss_at(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    batch: Batch,
    t: Tensor,
    eps: Tensor,
    *,
    min_snr_gamma: float | None = None,
    outside_mask: float | None = None,
) -> Tensor:
    """Losses (B,) at timesteps t (B,) int64 with noise eps (B, C, H, W).

    With `outside_mask` places count by the pictures' masks, black ones that much.
    """
    x0 = batch.latents
    x = schedule.add_noise(x0, eps, t)
    output = denoiser(x, t.float(), batch.text.embeddings, batch.text.mask)
    weights = None
    if outside_mask is not None and batch.mask is not None:
        weights = outside_mask + (1 - outside_mask) * batch.mask
    return training_loss(
        output, x0, eps, x, t, schedule, min_snr_gamma=min_snr_gamma, weights=weights
    ).total
