"""Latent consistency distillation (Luo et al. 2023, "LCM"; Chen et al. 2024, "PixArt-δ").

A student learns to jump from any time to the picture: its answers at two neighbouring times of the
teacher's path must agree.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixsigma.data.features import Batch
from pixsigma.diffusion.loss import x0_from
from pixsigma.diffusion.schedule import NoiseSchedule, per_row
from pixsigma.interfaces import Denoiser, TextFeatures
from pixsigma.shapes import Latents
from pixsigma.training.sections import DistillSection

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
"""Of the boundary condition, as in the sampler."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Who teaches whom; teacher and target are asked without gradients."""

    section: DistillSection
    schedule: NoiseSchedule
    teacher: Denoiser
    target: Denoiser
    null: TextFeatures
    """The empty caption, one row."""

    def loss(self, student: Denoiser, batch: Batch, rng: torch.Generator) -> Tensor:
        """(B,): distance of the student at a time from the target one DDIM step earlier.

        Random numbers are drawn on the CPU.
        """
        x0, text = batch.latents, batch.text
        start, end = self.times(len(x0), rng)
        start, end = start.to(x0.device), end.to(x0.device)
        eps = torch.randn(x0.shape, generator=rng).to(x0.device)
        least, most = self.section.range
        w = least + (most - least) * torch.rand(len(x0), generator=rng)
        x = self.schedule.add_noise(x0, eps, start)
        answer = self.jump(student, x, start, text)
        with torch.no_grad():
            earlier = self.guided_step(x, start, end, text, w.to(x0.device))
            wanted = self.jump(self.target, earlier, end, text)
        return distance(answer - wanted, self.section).flatten(1).mean(dim=1)

    def times(self, num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(num,) each: times of the grid, drawn evenly, and those one step earlier; 0 ends it."""
        steps = self.schedule.config.num_train_timesteps
        size = steps // self.section.num_timesteps
        start = (torch.randint(self.section.num_timesteps, (num,), generator=rng) + 1) * size - 1
        return start, (start - size).clamp(min=0)

    def jump(self, network: Denoiser, x: Latents, t: Tensor, text: TextFeatures) -> Latents:
        """The consistency function c_skip x + c_out x0, which at time 0 is x itself."""
        x0, _ = self.ask(network, x, t, text)
        scaled = t.to(x.dtype).view(-1, 1, 1, 1) * TIMESTEP_SCALING
        total = scaled**2 + SIGMA_DATA**2
        return SIGMA_DATA**2 / total * x + scaled / total.sqrt() * x0

    def guided_step(
        self, x: Latents, start: Tensor, end: Tensor, text: TextFeatures, w: Tensor
    ) -> Latents:
        """One DDIM step of the teacher with guidance cond + w (cond - uncond)."""
        num = len(x)
        null = TextFeatures(
            self.null.embeddings.expand(num, -1, -1), self.null.mask.expand(num, -1)
        ).to(x.device)
        x0, eps = self.ask(self.teacher, x, start, text)
        x0_null, eps_null = self.ask(self.teacher, x, start, null)
        w = w.to(x.dtype).view(-1, 1, 1, 1)
        x0, eps = x0 + w * (x0 - x0_null), eps + w * (eps - eps_null)
        return self.schedule.add_noise(x0, eps, end)

    def ask(
        self, network: Denoiser, x: Latents, t: Tensor, text: TextFeatures
    ) -> tuple[Latents, Latents]:
        """x0 and eps that a network sees in `x` at times t (B,)."""
        mean = network(x, t.float(), text.embeddings, text.mask)[:, : x.shape[1]].to(x.dtype)
        x0 = x0_from(mean, x, t, self.schedule)
        if self.schedule.config.prediction_type == "epsilon":
            return x0, mean
        bars = self.schedule.alphas_cumprod
        alpha, sigma = per_row(bars.sqrt(), t, x), per_row((1 - bars).sqrt(), t, x)
        return x0, (x - alpha * x0) / sigma


def distance(difference: Tensor, section: DistillSection) -> Tensor:
    """Squared, or pseudo-Huber sqrt(d² + c²) - c, which large errors do not rule."""
    if section.loss == "l2":
        return difference**2
    c = section.huber_c
    return (difference**2 + c**2).sqrt() - c


def asked_alone(network: Denoiser, autocast: Callable[[], object]) -> Denoiser:
    """A network in the run's precision, without gradients, that accelerate does not know of."""

    def ask(x: Latents, t: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.no_grad(), autocast():  # type: ignore[attr-defined]
            return network(x, t, text, mask).float()

    return ask
