"""The run: read downwards. A generator, so that the door owns the progress bar and Ctrl-C."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pixsigma.config import ScheduleConfig, TransformerConfig
from pixsigma.data.batching import BucketBatches
from pixsigma.data.features import Batch, Features
from pixsigma.data.shards import open_features
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import MismatchError, NotFiniteError
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.checkpoint import (
    checkpoint_at,
    drop_old_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from pixsigma.training.ema import Ema
from pixsigma.training.optim import optimizers, rate_at
from pixsigma.training.recipe import Recipe, RunSection, refuse_change
from pixsigma.training.step import loss_of_batch
from pixsigma.weights.build import Part, resolve
from pixsigma.weights.folder import read_transformer, save_transformer


@dataclass(frozen=True)
class Progress:
    """What a run says now and then."""

    step: int
    steps: int
    loss: float
    """Mean since the last report."""
    samples_per_second: float
    learning_rate: float
    """Of the first group of weights."""
    held_out_loss: float | None = None
    """Where it was measured at this step."""
    picture: Path | None = None
    """Of the validation's prompts, where they were drawn at this step."""


def build_model(recipe: Recipe) -> PixArtTransformer:
    """A fresh transformer, or one that begins with another's weights."""
    section = recipe.model
    torch.manual_seed(recipe.run.seed)
    if section.init_from is not None:
        return stronger(section.init_from, section.told)
    model = PixArtTransformer(TransformerConfig(**section.told))
    model.init_weights()
    return model


def stronger(name: str, told: dict[str, Any]) -> PixArtTransformer:
    """A trained model at another resolution, or with KV compression (weak to strong, Σ 3.3).

    No weight depends on the size of the picture: positions are interpolated by their scale alone.
    Compression comes in as an average of its tokens. Raises MismatchError for other differences.
    """
    parts: tuple[Part, ...] = ("transformer",)
    weaker = read_transformer(resolve(name, parts), dtype=torch.float32)
    config = dataclasses.replace(weaker.config, **told)
    free = {key: getattr(config, key) for key in ("sample_size", "interpolation_scale")}
    if weaker.config.kv_compression is None:
        free["kv_compression"] = config.kv_compression
    same = dataclasses.replace(weaker.config, **free)
    if same != config:
        raise MismatchError(f"{name} is another model: {same}, not {config}")
    model = PixArtTransformer(config)
    model.init_weights()
    # Copies: what was read lies in the file's memory.
    lacking = model.load_state_dict(weaker.state_dict(), strict=False).missing_keys
    inserted = re.compile(r"blocks\.\d+\.attn\.(sr|norm)\.\w+")
    assert all(inserted.fullmatch(key) for key in lacking), "only compression may be new"
    return model


def refuse_misfit(data: Features, recipe: Recipe, config: TransformerConfig) -> None:
    """Raise MismatchError where the features are not what the transformer takes."""
    if data.text_width != config.caption_channels:
        raise MismatchError(
            f"text features in {recipe.features} have width {data.text_width}, the transformer "
            f"takes caption_channels = {config.caption_channels}: encode with its text encoder"
        )
    ratio = config.kv_compression.ratio if config.kv_compression else 1
    multiple = config.patch_size * ratio
    for channels, height, width in data.latent_shapes:
        odd = height % multiple or width % multiple
        if channels != config.in_channels or odd:
            raise MismatchError(
                f"latents in {recipe.features} are ({channels}, {height}, {width}), the "
                f"transformer takes {config.in_channels} channels and multiples of {multiple} "
                f"(patches of {config.patch_size}, KV compression {ratio})"
            )


def start(run: RunSection) -> Accelerator:
    """This process among those that `accelerate launch` or torchrun began: alone by default."""
    return Accelerator(cpu=run.device == "cpu", mixed_precision=run.mixed_precision)


class Trainer:
    """Trains one transformer on cached features; every state that matters is in the checkpoint."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out, run = recipe, out, recipe.run
        self.accelerator = start(run)
        self.data = open_features(recipe.features, long_captions=run.long_captions)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.batches = BucketBatches(
            self.data.bucket_of, run.batch_size, run.seed, rank=rank, world=world
        )
        self.schedule = NoiseSchedule(ScheduleConfig(prediction_type=recipe.loss.prediction_type))
        self.model = build_model(recipe).to(self.accelerator.device)
        self.model.recompute = run.gradient_checkpointing
        refuse_misfit(self.data, recipe, self.model.config)
        self.ema = Ema(self.model, run.ema_decay)
        self.optimizers = optimizers(self.model, recipe.optimizer)
        self.peaks = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.step = 0
        if run.compile:
            # Block by block: all share one compiled body, so that it is ready in a minute.
            for block in self.model.blocks:
                block.compile(dynamic=False)
        self.network, *self.movers = self.accelerator.prepare(self.model, *self.optimizers)

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
        """Train to the last step, or until `stop` says so; `out/model` is always whole."""
        run = self.recipe.run
        losses, since = [], time.monotonic()
        while self.step < run.steps and not stop():
            losses.append(self.training_step())
            self.step += 1
            if self.step % run.log_every == 0 or self.step == run.steps:
                mean = self.accelerator.reduce(torch.stack(losses).mean(), "mean")
                speed = len(losses) * run.batch_size / (time.monotonic() - since)
                yield self.report(mean.item(), speed)
                losses, since = [], time.monotonic()
            if self.step % run.checkpoint_every == 0:
                self.save()
        self.save()

    def training_step(self) -> Tensor:
        """Forward, backward, update; returns the loss without waiting for it."""
        run = self.recipe.run
        parts = self.batches.rows(self.step).chunk(run.accumulate)
        first = self.accelerator.process_index * run.accumulate
        total = torch.zeros((), device=self.accelerator.device)
        for i, rows in enumerate(parts):
            last = i == run.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                total += self.backward(rows, self.randomness(first + i)) / len(parts)
        self.set_rates(rate_at(self.step, run.steps, self.recipe.optimizer))
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_norm)
        for mover in self.movers:
            mover.step()
            mover.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        return total

    def backward(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Gradients of some rows' mean loss, which is returned."""
        batch = self.data.batch(rows, self.recipe.run.caption_dropout, rng)
        device = self.accelerator.device
        batch = Batch(batch.latents.to(device), batch.text.to(device))
        loss = loss_of_batch(self.network, self.schedule, batch, self.recipe.loss, rng).mean()
        self.accelerator.backward(loss / self.recipe.run.accumulate)
        return loss.detach()

    def randomness(self, part: int) -> torch.Generator:
        """Of one part of one step's pictures: a function of seed, step and part alone.

        So a run resumes exactly without any state of random numbers, and two processes draw what
        one with `accumulate = 2` does.
        """
        seed = (self.recipe.run.seed * 2**28 + self.step) * 2**14 + part
        return torch.Generator().manual_seed(seed % 2**63)

    def set_rates(self, share: float) -> None:
        """Give every group its share of the recipe's learning rate."""
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share

    def report(self, loss: float, samples_per_second: float) -> Progress:
        """What is told of the last steps; raises NotFiniteError for a loss that is no number."""
        self.refuse_broken(math.isfinite(loss), f"the loss is {loss}")
        rate = float(self.optimizers[0].param_groups[0]["lr"])
        return Progress(self.step, self.recipe.run.steps, loss, samples_per_second, rate)

    def refuse_broken(self, finite: bool, what: str) -> None:
        """Raise NotFiniteError before a broken state replaces the last good checkpoint."""
        if not finite:
            raise NotFiniteError(
                f"{what} at step {self.step}: the last checkpoint is intact; "
                "lower the learning rate or clip_norm and resume"
            )

    def save(self) -> None:
        """Write the whole state, and the averaged weights as a model."""
        if not self.accelerator.is_main_process:
            return
        whole = all(bool(p.isfinite().all()) for p in self.model.parameters())
        self.refuse_broken(whole, "a weight is not a finite number")
        state: dict[str, Any] = {
            "step": self.step,
            "recipe": self.recipe.model_dump(mode="json"),
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        save_checkpoint(checkpoint_at(self.out, self.step), state)
        drop_old_checkpoints(self.out, self.recipe.run.keep_checkpoints)
        save_transformer(self.averaged(), self.out / "model" / "transformer")

    def resume(self) -> None:
        """Go on exactly where the last checkpoint stands; raises MissingWeightsError."""
        state = load_checkpoint(latest_checkpoint(self.out))
        refuse_change(state["recipe"], self.recipe)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def averaged(self) -> PixArtTransformer:
        """The model with the averaged weights."""
        with torch.device("meta"):
            model = PixArtTransformer(self.model.config)
        model.load_state_dict(self.ema.shadow, assign=True)
        return model.eval()
