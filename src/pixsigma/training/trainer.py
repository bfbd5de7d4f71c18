"""The run: read downwards. A generator, so that the door owns the progress bar and Ctrl-C."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixsigma.config import ScheduleConfig
from pixsigma.data.batching import BucketBatches
from pixsigma.data.features import Batch, Features
from pixsigma.data.shards import open_features
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError, NotFiniteError
from pixsigma.interfaces import TextFeatures
from pixsigma.models.blocks import SelfAttention
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.pages import keep_pages
from pixsigma.training.adapter import put_on, save_adapter, sharing
from pixsigma.training.beginning import (
    build_model,
    refuse_misfit,
    refuse_unmasked,
    teacher_of,
)
from pixsigma.training.checkpoint import (
    checkpoint_at,
    drop_old_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from pixsigma.training.control import Following, averaged, following, save_copy
from pixsigma.training.distill import Distillation, asked_alone
from pixsigma.training.distributed import (
    Agreement,
    like,
    load_optimizer,
    not_yet_summed,
    shard,
    start,
    under_autocast,
    whole,
)
from pixsigma.training.ema import average_of
from pixsigma.training.optim import optimizers, rate_at
from pixsigma.training.reading import Ahead
from pixsigma.training.recipe import Recipe, refuse_change
from pixsigma.training.step import loss_of_batch
from pixsigma.weights.folder import save_transformer

MOST_PARTS = 2**13
"""Processes times `accumulate`: each part of a step has random numbers of its own."""


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
    stage: str | None = None
    """Of a chain."""


@dataclass(frozen=True)
class Stream:
    """Pictures that every step reads, and how much their loss counts."""

    data: Features
    batches: BucketBatches
    weight: float = 1.0


@dataclass(frozen=True)
class Portion:
    """Some of a step's pictures."""

    batch: Batch
    weight: float
    """How much their mean loss counts."""
    rng: torch.Generator
    """For all that is random about them."""


def trainable(model: PixArtTransformer) -> dict[str, Tensor]:
    """The weights that a run moves, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


class Trainer:
    """Trains one transformer on cached features; every state that matters is in the checkpoint."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out, run = recipe, out, recipe.run
        self.accelerator = start(run, out)
        if self.accelerator.device.type == "cpu":
            keep_pages()
        self.data = self.read(recipe.features)
        self.streams = [Stream(self.data, self.order(self.data))]
        self.schedule = NoiseSchedule(ScheduleConfig(prediction_type=recipe.loss.prediction_type))
        model, self.family = build_model(recipe)
        self.model: Any = model.to(self.accelerator.device)
        self.check(self.data, recipe.features)
        if (prior := recipe.prior) is not None:
            classes = self.read(prior.features)
            self.check(classes, prior.features)
            self.streams.append(Stream(classes, self.order(classes), prior.weight))
        if (held_out := recipe.validation.features) is not None:
            refuse_misfit(open_features(held_out), held_out, recipe, self.model.config)
        teacher = None if recipe.distill is None else teacher_of(recipe, self.model)
        adapter = recipe.adapter
        self.adapted = {} if adapter is None else put_on(self.model, adapter)
        if recipe.control is not None:
            self.model = Following(self.model, recipe.control)
        self.model.recompute = run.gradient_checkpointing
        for part in self.model.modules():
            if isinstance(part, SelfAttention):
                part.in_float32 = run.fp32_attention
        if run.compile:
            # Block by block: all share one compiled body, so that it is ready in a minute.
            for block in self.model.blocks:
                block.compile(dynamic=False)
        if run.shard:
            shard(self.model, self.accelerator)
        precision = torch.bfloat16 if run.mixed_precision == "bf16" else None
        section = recipe.optimizer.scaled(run.batch_size)
        self.optimizers = optimizers(self.model, section, precision)
        self.ema = average_of(self.model, run, self.optimizers)
        self.peaks = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.step = 0
        self.reading = Ahead(self.portions)
        self.distillation = None if teacher is None else self.distilled_from(teacher)
        self.movers = [self.accelerator.prepare(o) for o in self.optimizers]
        if run.shard:
            self.network = under_autocast(self.model, self.accelerator)
        else:
            self.network = self.accelerator.prepare(self.model)

    def read(self, features: Path) -> Features:
        """Open prepared pictures; raises WeightsError."""
        return open_features(features, long_captions=self.recipe.run.long_captions)

    def check(self, data: Features, path: Path) -> None:
        """Raise MismatchError where pictures are none to train this network on."""
        refuse_unmasked(data, path, self.recipe)
        refuse_misfit(data, path, self.recipe, self.model.config)

    def order(self, data: Features) -> BucketBatches:
        """Which rows this process reads in every step; raises InputError."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        run = self.recipe.run
        if run.batch_size % (world * run.accumulate):
            raise InputError(
                f"a batch of {run.batch_size} must divide among {world} processes and "
                f"accumulate = {run.accumulate}: make it a multiple of {world * run.accumulate}"
            )
        return BucketBatches(data.bucket_of, run.batch_size, run.seed, rank=rank, world=world)

    def distilled_from(self, teacher: PixArtTransformer) -> Distillation:
        """The loss of a student, its target the average or itself."""
        section = self.recipe.distill
        assert section is not None, "a teacher is there for a distillation"
        # weights that the average or the optimiser changes are seen at once: they are shared
        averages = self.ema.shadow if section.target == "ema" else {}
        target, autocast = sharing(self.model, averages), self.accelerator.autocast
        return Distillation(
            section=section,
            schedule=self.schedule,
            teacher=asked_alone(teacher, autocast),
            target=asked_alone(target, autocast),
            null=TextFeatures(self.data.null_text, self.data.null_mask),
        )

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
        """Train to the last step, or until `stop` says so; `out/model` is always whole."""
        run = self.recipe.run
        losses, since = [], time.monotonic()
        stopping = Agreement(self.accelerator)
        while self.step < run.steps and not stopping(stop()):
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
        parts = self.reading.at(self.step, last=self.step + 1 >= run.steps)
        total = torch.zeros((), device=self.accelerator.device)
        for part in parts:
            last = part is parts[-1]
            with nullcontext() if last else not_yet_summed(self.accelerator, self.network):
                total += self.backward(part)
        self.set_rates(rate_at(self.step, run.steps, self.recipe.optimizer))
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_norm)
        for mover in self.movers:
            mover.step()
            mover.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        return total

    def portions(self, step: int) -> list[Portion]:
        """What this process reads in a step, every part with random numbers of its own."""
        run = self.recipe.run
        first = self.accelerator.process_index * run.accumulate
        found = []
        for k, stream in enumerate(self.streams):
            for i, rows in enumerate(stream.batches.rows(step).chunk(run.accumulate)):
                rng = self.randomness(step, first + i + k * MOST_PARTS)
                batch = stream.data.batch(rows, run.caption_dropout, rng)
                found.append(Portion(batch, stream.weight / run.accumulate, rng))
        return found

    def backward(self, part: Portion) -> Tensor:
        """Gradients of what some pictures add to the step's loss, which is returned."""
        losses = self.losses(part.batch.to(self.accelerator.device), part.rng)
        loss = losses.mean() * part.weight
        self.accelerator.backward(loss)
        return loss.detach()

    def losses(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """(B,): of every picture."""
        if self.distillation is not None:
            return self.distillation.loss(self.network, batch, rng)
        network = self.network if self.recipe.control is None else following(self.network, batch)
        return loss_of_batch(network, self.schedule, batch, self.recipe.loss, rng)

    def randomness(self, step: int, part: int) -> torch.Generator:
        """Of one part of one step's pictures: a function of seed, step and part alone.

        So a run resumes exactly without any state of random numbers, and two processes draw what
        one with `accumulate = 2` does.
        """
        # torch's generator reads 32 bits of a seed, so all three have to be in them
        mixed = hashlib.sha256(f"{self.recipe.run.seed} {step} {part}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(mixed[:4]))

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
        """Write the whole state, and the averaged weights as a model; every process must ask."""
        keep = self.accelerator.is_main_process
        state: dict[str, Any] = {
            "step": self.step,
            "recipe": self.recipe.model_dump(mode="json"),
            "model": whole(trainable(self.model), keep),
            "ema": whole(self.ema.state_dict(), keep),
            "optimizers": [whole(o.state_dict(), keep) for o in self.optimizers],
        }
        if not keep:
            return
        finite = all(bool(p.isfinite().all()) for p in state["model"].values())
        self.refuse_broken(finite, "a weight is not a finite number")
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        save_checkpoint(checkpoint_at(self.out, self.step), state)
        drop_old_checkpoints(self.out, self.recipe.run.keep_checkpoints)
        self.save_result({key: state["ema"][key] for key in state["model"]})

    def save_result(self, weights: dict[str, Tensor]) -> None:
        """Write what the run is for: averaged weights, as a model or as an adapter."""
        adapter, base = self.recipe.adapter, self.recipe.model.init_from
        if (control := self.recipe.control) is not None:
            assert base is not None, "the recipe refuses a control without"
            save_copy(weights, self.model, self.out / "control", control, base)
            return
        if adapter is None:
            folder = self.out / "model" / "transformer"
            save_transformer(self.with_weights(weights), folder, self.family)
            return
        save_adapter(self.model, self.adapted, weights, adapter, self.out / "adapter", base)

    def resume(self) -> None:
        """Go on exactly where the last checkpoint stands; raises MissingWeightsError."""
        state = load_checkpoint(latest_checkpoint(self.out))
        refuse_change(state["recipe"], self.recipe)
        self.step = state["step"]
        places = dict(self.model.named_parameters())
        for kind in ("model", "ema"):
            state[kind] = {
                key: like(value, places[key]) if key in places else value
                for key, value in state[kind].items()
            }
        part = self.recipe.adapter is not None or self.recipe.control is not None
        self.model.load_state_dict(state["model"], strict=not part)
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def averaged(self) -> Any:
        """The model (with a ControlNet, a Following) with the averaged weights.

        What is not trained is shared with it. Every process must ask; where weights lie in parts
        the main one alone gets them.
        """
        return self.with_weights(whole(self.ema.shadow, self.accelerator.is_main_process))

    def with_weights(self, weights: dict[str, Tensor]) -> Any:
        """The model with other weights, by name."""
        if self.recipe.control is not None:
            return averaged(self.model, weights)
        if self.recipe.adapter is not None:
            return sharing(self.model, weights)
        with torch.device("meta"):
            model = PixArtTransformer(self.model.config)
        if self.accelerator.is_main_process or not self.recipe.run.shard:
            model.load_state_dict(weights, assign=True)
        return model.eval()
