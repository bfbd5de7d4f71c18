"""The two training loops that `train_step.py` compares, and what they train."""

from typing import Any

import torch
from torch import Tensor, nn

from pixsigma.comparing import in_diffusers
from pixsigma.config import TransformerConfig
from pixsigma.data.features import Batch
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.interfaces import TextFeatures
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.ema import Ema
from pixsigma.training.optim import adamw
from pixsigma.training.sections import LossSection
from pixsigma.training.step import loss_of_batch

SIZES: dict[str, dict[str, Any]] = {
    "64px": {"layers": 10, "heads": 4, "head": 64, "text": 256, "side": 8, "batch": 64},
    "128px": {"layers": 10, "heads": 4, "head": 64, "text": 256, "side": 16, "batch": 16},
    "XL/2": {"layers": 28, "heads": 16, "head": 72, "text": 4096, "side": 32, "batch": 1},
    "quick": {"layers": 2, "heads": 2, "head": 32, "text": 64, "side": 8, "batch": 4},
}
"""64px and 128px are a network of 12M weights at the sizes that mini trains at."""
LENGTHS = {"64px": (1, 40), "128px": (1, 40), "XL/2": (150, 150), "quick": (1, 12)}
"""The shortest and the longest text of a batch. XL/2: 60 % of 230 tokens and 40 % of 25, the
paper's mix of long and short captions, are 150 on average."""
SIDES = ("ours", "compiled", "diffusers")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of products; weights stay float32, as accelerate's mixed precision has it."""


def computing_in(dtype: torch.dtype) -> torch.autocast:
    """Autocast, or nothing for float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def model_of(size: str) -> PixArtTransformer:
    """Our network, every layer of which speaks."""
    told = SIZES[size]
    torch.manual_seed(0)
    model = PixArtTransformer(
        TransformerConfig(
            num_layers=told["layers"],
            num_attention_heads=told["heads"],
            attention_head_dim=told["head"],
            caption_channels=told["text"],
            sample_size=told["side"],
            interpolation_scale=told["side"] / 64,
        )
    )
    model.init_weights()
    nn.init.normal_(model.final_layer.linear.weight, std=0.02)
    for block in model.blocks:
        nn.init.normal_(block.get_parameter("cross_attn.proj.weight"), std=0.02)
    return model


def batch_of(size: str) -> Batch:
    """Random latents and texts, evenly long between the shortest and the longest."""
    told, (least, most) = SIZES[size], LENGTHS[size]
    torch.manual_seed(0)
    num, length = told["batch"], most
    lengths = torch.linspace(least, most, num).long()
    mask = torch.arange(length) < lengths[:, None]
    text = torch.randn(num, length, told["text"]) * mask[..., None]
    latents = torch.randn(num, 4, told["side"], told["side"])
    return Batch(latents, TextFeatures(text, mask))


class Ours:
    """The trainer's step without its loader."""

    def __init__(
        self, model: PixArtTransformer, whole: bool, dtype: torch.dtype, compiled: bool
    ) -> None:
        self.model, self.dtype = model.train().requires_grad_(True), dtype
        self.schedule, self.rng = NoiseSchedule(), torch.Generator().manual_seed(0)
        model.recompute = not whole
        if compiled:
            for block in model.blocks:
                block.compile(dynamic=False)
        self.mover = adamw(model.parameters(), 1e-4, 0.0) if whole else None
        self.ema = Ema(model, 0.999) if whole else None

    def predict(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """Noise and variance."""
        with computing_in(self.dtype):
            output: Tensor = self.model(x, t, text, mask)
        return output.float()

    def step(self, batch: Batch) -> Tensor:
        """Once."""
        loss = loss_of_batch(self.predict, self.schedule, batch, LossSection(), self.rng).mean()
        loss.backward()
        if self.mover is not None and self.ema is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.mover.step()
            self.ema.update(self.model)
        self.model.zero_grad(set_to_none=True)
        return loss.detach()

    @torch.no_grad()
    def answer(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """To what both sides are asked."""
        return self.predict(x, t.float(), batch.text.embeddings, batch.text.mask)


class Plain:
    """A loop as people write it; the variance half gets no loss, as in diffusers' scripts."""

    def __init__(self, model: Any, whole: bool, dtype: torch.dtype) -> None:
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        self.model = model.train().requires_grad_(True)
        schedule: Any = DDPMScheduler
        self.scheduler = schedule(
            beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", num_train_timesteps=1000
        )
        if not whole:
            self.model.enable_gradient_checkpointing()
        self.whole, self.dtype = whole, dtype
        if whole:
            self.mover = torch.optim.AdamW(
                model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0
            )
            self.ema = EMAModel(model.parameters(), decay=0.999)

    def predict(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """Noise and variance."""
        with computing_in(self.dtype):
            output: Tensor = self.model(
                x,
                encoder_hidden_states=batch.text.embeddings,
                encoder_attention_mask=batch.text.mask,
                timestep=t,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                return_dict=False,
            )[0]
        return output.float()

    def step(self, batch: Batch) -> Tensor:
        """Once."""
        x0 = batch.latents
        eps = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),))
        output = self.predict(self.scheduler.add_noise(x0, eps, t), t, batch)
        loss = nn.functional.mse_loss(output.chunk(2, dim=1)[0], eps)
        loss.backward()
        if self.whole:
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.mover.step()
            self.ema.step(self.model.parameters())
        self.model.zero_grad(set_to_none=True)
        return loss.detach()

    @torch.no_grad()
    def answer(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """To what both sides are asked."""
        return self.predict(x, t, batch)


def side_of(name: str, size: str, whole: bool, dtype: torch.dtype) -> Ours | Plain:
    """One of `SIDES`, with weights of its own."""
    model = model_of(size)
    if name == "diffusers":
        return Plain(in_diffusers(model), whole, dtype)
    return Ours(model, whole, dtype, name == "compiled")
