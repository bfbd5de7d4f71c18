"""What a request will take of this server: memory by the plan of its networks, time by what
drawings of the same model took before.
"""

import statistics
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pixsigma.machine import Machine, this_machine
from pixsigma.memory import PartPlan, Wish, settled
from pixsigma.server.jobs import JobStore
from pixsigma.weights.facts import Facts

LOOKED_AT = 5
"""Earlier drawings that the time is learned from."""

_PRESUMED = 1e9
"""Multiplications a second, for plans whose times are only compared with one another."""


@dataclass(frozen=True)
class Work:
    """What a drawing costs by."""

    width: int
    height: int
    steps: int
    guided: bool
    num: int
    """Pictures."""


@dataclass(frozen=True)
class Estimate:
    """Of all pictures of a request."""

    peak: int
    """Bytes at the most, the weights and on a processor the process included."""
    room: int
    """Bytes that the process may take."""
    seconds: float | None
    """None where this server drew nothing with this model yet."""


@dataclass
class Estimator:
    """Estimates for the models of a server."""

    pipes: Mapping[str, Any]
    store: JobStore
    _facts: dict[str, Facts] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def estimate(self, work: Work, model: str, client: str) -> Estimate:
        """What this will take, as far as earlier drawings of the client tell."""
        pipe = self.pipes[model]
        machine = replace(
            this_machine(pipe.device, pipe.dtype, False), flops=_PRESUMED, bandwidth=_PRESUMED
        )
        with self._lock:
            presumed = self._planned(work, model, machine)
            ratio = self._ratio(model, machine, client)
        seconds = None if ratio is None else (presumed.seconds or 0.0) * ratio
        return replace(presumed, seconds=seconds)

    def _planned(self, work: Work, model: str, machine: Machine) -> Estimate:
        """The same with presumed seconds."""
        pipe, facts = self.pipes[model], self._facts_of(model)
        wish = Wish(
            width=work.width,
            height=work.height,
            steps=work.steps,
            guided=work.guided,
            dtype=pipe.dtype,
        )
        plan = settled(facts, wish, machine, False, pipe.decoding, pipe.placement.mode)
        text, network, decoder = plan.parts
        more = (work.num - 1) * max(network.work, decoder.work)
        seconds = _seconds(text) + work.num * (_seconds(network) + _seconds(decoder))
        resident = pipe.placement.mode == "resident"
        held = sum(part.weights for part in plan.parts) if resident else 0
        # the weights are loaded: a process counts them in its base, a device in what is not free
        if machine.base:
            return Estimate(plan.peak + more - held, machine.memory, seconds)
        return Estimate(plan.peak + more, machine.memory + held, seconds)

    def _ratio(self, model: str, machine: Machine, client: str) -> float | None:
        """True seconds to presumed ones, of the latest drawings of this model and client."""
        found = [
            (job.seconds, work)
            for job in self.store.latest(client, 3 * LOOKED_AT)
            if job.model == model and job.seconds and (work := work_of(job.request))
        ]
        ratios = [
            seconds / (self._planned(work, model, machine).seconds or 1.0)
            for seconds, work in found[:LOOKED_AT]
        ]
        return statistics.median(ratios) if ratios else None

    def _facts_of(self, model: str) -> Facts:
        if model not in self._facts:
            pipe = self.pipes[model]
            kept = float(pipe.dtype.itemsize)
            self._facts[model] = Facts(
                name=model,
                transformer=pipe.transformer_config,
                text_encoder=pipe.text_encoder.encoder.config,
                autoencoder=pipe.vae.config,
                stored={"transformer": kept, "text_encoder": kept, "autoencoder": kept},
            )
        return self._facts[model]


def work_of(fields: Mapping[str, Any], size: tuple[int, int] | None = None) -> Work | None:
    """The work of a request's fields; None where neither they nor `size` (width, height) say how
    large the pictures are.
    """
    width, height = fields.get("width"), fields.get("height")
    if not (width and height):
        if size is None:
            return None
        width, height = size
    steps = fields["num_inference_steps"]
    share = None if fields.get("two_pass") else fields.get("strength")
    if share is not None:  # from a picture on, only a share of the steps is taken
        steps = max(1, round(steps * share))
    return Work(
        width=max(16, width // 16 * 16),
        height=max(16, height // 16 * 16),
        steps=steps,
        guided=fields["guidance_scale"] > 1,
        num=fields["num_images"],
    )


def _seconds(part: PartPlan) -> float:
    return part.seconds or 0.0
