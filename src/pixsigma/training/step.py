"""One training step's loss: noise, predict, compare."""

import torch
from torch import Tensor

from pixsigma.data.features import Batch
from pixsigma.diffusion.loss import training_loss
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.interfaces import Denoiser
from pixsigma.training.recipe import LossSection


def draw_timesteps(num: int, schedule: NoiseSchedule, how: str, rng: torch.Generator) -> Tensor:
    """(num,) int64: independent and uniform, or one in each of `num` equal parts (stratified)."""
    u = torch.rand(num, generator=rng)
    if how == "stratified":
        u = (torch.arange(num) + u) / num
    # float32 rounding may give exactly 1
    last = schedule.config.num_train_timesteps - 1
    return (u * (last + 1)).long().clamp(max=last)


def loss_of_batch(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    batch: Batch,
    section: LossSection,
    rng: torch.Generator,
) -> Tensor:
    """Losses of each picture (B,): noise it, let the network predict, compare."""
    x0 = batch.latents
    t = draw_timesteps(len(x0), schedule, section.timesteps, rng)
    eps = torch.randn(x0.shape, generator=rng)
    x = schedule.add_noise(x0, eps, t)
    output = denoiser(x, t.float(), batch.text.embeddings, batch.text.mask)
    terms = training_loss(output, x0, eps, x, t, schedule, min_snr_gamma=section.min_snr_gamma)
    return terms.total
