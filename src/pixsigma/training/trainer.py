"""The run: read downwards. A generator, so that the door owns the progress bar and Ctrl-C."""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixsigma.config import ScheduleConfig, TransformerConfig
from pixsigma.data.batching import BucketBatches
from pixsigma.data.features import Batch, Features
from pixsigma.data.shards import open_features
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import MismatchError, NotFiniteError
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.checkpoint import load_checkpoint, save_checkpoint
from pixsigma.training.ema import Ema
from pixsigma.training.optim import optimizers, rate_at
from pixsigma.training.recipe import Recipe
from pixsigma.training.step import loss_of_batch
from pixsigma.weights.folder import read_transformer, save_transformer


@dataclass(frozen=True)
class Progress:
    """What a run says now and then."""

    step: int
    steps: int
    loss: float
    """Mean since the last report."""
    samples_per_second: float


def build_model(recipe: Recipe) -> PixArtTransformer:
    """A fresh transformer, or one with lower resolution's weights (weak to strong)."""
    config = TransformerConfig(**recipe.model.model_dump(exclude={"init_from"}))
    torch.manual_seed(recipe.run.seed)
    model = PixArtTransformer(config)
    if recipe.model.init_from is None:
        model.init_weights()
        return model
    weaker = read_transformer(recipe.model.init_from, dtype=torch.float32)
    # No weight depends on the size of the picture: only the positions' scale changes.
    same = dataclasses.replace(
        weaker.config,
        sample_size=config.sample_size,
        interpolation_scale=config.interpolation_scale,
    )
    if same != config:
        raise MismatchError(f"{recipe.model.init_from} is another model: {same}, not {config}")
    model.load_state_dict(weaker.state_dict())  # copies: what was read lies in the file's memory
    return model


def refuse_misfit(data: Features, recipe: Recipe) -> None:
    """Raise MismatchError where the features are not what the transformer takes."""
    config = TransformerConfig(**recipe.model.model_dump(exclude={"init_from"}))
    if data.text_width != config.caption_channels:
        raise MismatchError(
            f"text features in {recipe.features} have width {data.text_width}, the transformer "
            f"takes caption_channels = {config.caption_channels}: encode with its text encoder"
        )
    for channels, height, width in data.latent_shapes:
        odd = height % config.patch_size or width % config.patch_size
        if channels != config.in_channels or odd:
            raise MismatchError(
                f"latents in {recipe.features} are ({channels}, {height}, {width}), the "
                f"transformer takes {config.in_channels} channels and multiples of "
                f"{config.patch_size}"
            )


class Trainer:
    """Trains one transformer on cached features; every state that matters is in the checkpoint."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.data = open_features(recipe.features, long_captions=recipe.run.long_captions)
        refuse_misfit(self.data, recipe)
        self.batches = BucketBatches(self.data.bucket_of, recipe.run.batch_size, recipe.run.seed)
        self.schedule = NoiseSchedule(ScheduleConfig(prediction_type=recipe.loss.prediction_type))
        self.model = build_model(recipe)
        self.optimizers = optimizers(self.model, recipe.optimizer)
        self.ema = Ema(self.model, recipe.run.ema_decay)
        self.rng = torch.Generator().manual_seed(recipe.run.seed)
        self.step = 0
        if recipe.run.compile:
            # Block by block: all share one compiled body, so that it is ready in a minute.
            for block in self.model.blocks:
                block.compile(dynamic=False)

    def run(self) -> Iterator[Progress]:
        """Train to the last step; stop by not asking for the next. `out/model` is always whole."""
        run = self.recipe.run
        losses, since = [], time.monotonic()
        while self.step < run.steps:
            losses.append(self.training_step(self.next_batch()))
            self.step += 1
            if self.step % run.log_every == 0 or self.step == run.steps:
                loss = torch.stack(losses).mean().item()
                seconds = time.monotonic() - since
                self.refuse_nan(loss)
                yield Progress(self.step, run.steps, loss, len(losses) * run.batch_size / seconds)
                losses, since = [], time.monotonic()
            if self.step % run.checkpoint_every == 0:
                self.save()
        self.save()

    def next_batch(self) -> Batch:
        """Rows of this step: every row once an epoch, place and order fixed by seed and step."""
        rows = self.batches.rows(self.step)
        return self.data.batch(rows, self.recipe.run.caption_dropout, self.rng)

    def training_step(self, batch: Batch) -> Tensor:
        """Forward, backward, update; returns the loss without waiting for it."""
        section = self.recipe.optimizer
        losses = loss_of_batch(self.model, self.schedule, batch, self.recipe.loss, self.rng)
        loss = losses.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), section.clip_norm)
        rate = rate_at(self.step, self.recipe.run.steps, section)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        return loss.detach()

    def refuse_nan(self, loss: float) -> None:
        """Stop before a broken state replaces the last good checkpoint."""
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise NotFiniteError(
                f"the loss is {loss} at step {self.step}: the last checkpoint is intact; "
                "lower the learning rate or clip_norm and resume"
            )

    @property
    def checkpoint_path(self) -> Path:
        """Where the state lies."""
        return self.out / "checkpoint.pt"

    def save(self) -> None:
        """Write the whole state, and the averaged weights as a model."""
        state: dict[str, Any] = {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "rng": self.rng.get_state(),
        }
        save_checkpoint(self.checkpoint_path, state)
        self.save_model()

    def resume(self) -> None:
        """Go on exactly where the last checkpoint stands."""
        state = load_checkpoint(self.checkpoint_path)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.rng.set_state(state["rng"])

    def save_model(self) -> None:
        """Write the averaged weights as a transformer folder."""
        averaged = PixArtTransformer(self.model.config)
        averaged.load_state_dict(self.ema.shadow)
        save_transformer(averaged, self.out / "model" / "transformer")
