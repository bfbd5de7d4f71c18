"""Before anything loads: what will be where, what it takes at its peak, how long it will last."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from pixsigma.costs import (
    decode_cost,
    encode_flops,
    matrices,
    parameters,
    step_cost,
    text_cost,
)
from pixsigma.errors import OutOfMemoryError
from pixsigma.machine import Machine
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.narrow import BLOCK_ROWS
from pixsigma.models.t5 import T5Encoder
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.models.windows import layout
from pixsigma.rehearsal import Cost
from pixsigma.weights.facts import Facts
from pixsigma.weights.streaming import most_at_once

Mode: TypeAlias = Literal["resident", "model", "sequential"]

EXACT_WAYS = ("whole", "strips", "strips-spill")
"""Ways of decoding that a plan takes by itself: the picture must not depend on the machine."""

SHARE = {"text encoder": 0.6, "transformer": 0.85, "autoencoder": 0.7}
"""What each part reaches of the rate of a large product."""

SPARE = 60_000_000
"""Bytes on top of what is counted: stacks of threads, code of kernels, the allocator's gaps."""

SCRATCH = 1.2
"""What kernels take beside the activations, as a share of them."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be drawn."""

    width: int
    height: int
    steps: int = 20
    guided: bool = True
    tokens: int = 77
    """Of the prompt."""
    dtype: torch.dtype = torch.float32
    decode: str | None = None
    """A way of decoding that is asked for; None leaves it to the plan."""
    cached: bool = False
    """Whether the prompts' features are on disk, so that no text encoder is read."""
    pictures: int = 1
    """Those that the network draws together; the others are done one at a time."""
    beside: int = 0
    """Rows that it has for a picture on top of those of plain guidance, as for regions."""
    window: tuple[int, int] | None = None
    """(height, width) in pixels of the tiles that it sees; None is all at once."""
    begins: bool = False
    """Whether it begins from a picture, which is encoded."""

    @property
    def rows(self) -> int:
        """Of the network's batch."""
        return self.pictures * (1 + self.guided + self.beside)


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """One network in a plan."""

    name: str
    way: str
    """`resident`, `in its file` (read there and staying), `streamed` (read anew for each prompt),
    `from the prompt cache`, `brought when it works` or `layer by layer`; for the autoencoder with
    how it decodes."""
    device: str
    precision: str
    weights: int
    """Bytes that lie in memory as long as the part does."""
    work: int
    """Bytes that it takes on top while it works."""
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of it."""

    name: str
    wish: Wish
    machine: Machine
    parts: tuple[PartPlan, ...]
    peak: int
    """Bytes on the machine's device, the process included."""
    stream_text: bool | int
    """As `from_pretrained` takes it: a number is how many bytes of the text encoder stay."""
    decode: str
    placement: Mode
    advice: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Of one picture without loading; None where the machine was not measured."""
        found = [part.seconds for part in self.parts]
        return None if None in found else sum(s for s in found if s is not None)

    @property
    def fits(self) -> bool:
        """Whether the machine has the memory."""
        return self.peak <= self.machine.memory


def make_plan(facts: Facts, wish: Wish, machine: Machine, *others: Wish) -> Plan:
    """The first of the possible plans that fits, quickest first; else the smallest one.

    With `others`, of the same precision, it serves all and is told for the wish that takes most.
    Its advice says what would make it smaller or faster.
    """
    ways = zip(*(candidates(facts, each, machine) for each in (wish, *others)), strict=True)
    plans = [max(plans, key=lambda plan: plan.peak) for plans in ways]
    smallest = min(plans, key=lambda plan: plan.peak)
    chosen = next((plan for plan in plans if plan.fits), smallest)
    return replace(chosen, advice=tuple(advise(facts, chosen, smallest)))


def require(plan: Plan) -> Plan:
    """The plan itself; raises OutOfMemoryError with its advice where it does not fit."""
    if plan.fits:
        return plan
    wish = plan.wish
    raise OutOfMemoryError(
        f"{plan.name} at {wish.width}x{wish.height} needs {gigabytes(plan.peak)} at least, there "
        f"is room for {gigabytes(plan.machine.memory)}; {'; '.join(plan.advice) or 'none helps'}"
    )


def candidates(facts: Facts, wish: Wish, machine: Machine) -> Iterator[Plan]:
    """Every plan for the device, quickest first."""
    ways = EXACT_WAYS if wish.decode is None else (wish.decode,)
    texts = text_ways(facts, wish, machine)
    places: Sequence[Mode] = ("resident", "model", "sequential")
    for placement in places if machine.device.type != "cpu" else places[:1]:
        quick = [way for way in ways if way != "strips-spill"]
        order = [(stream, way) for stream in texts for way in quick]
        order += [(stream, way) for stream in texts for way in ways if way not in quick]
        for stream, way in order:
            yield settled(facts, wish, machine, stream, way, placement)


def text_ways(facts: Facts, wish: Wish, machine: Machine) -> tuple[bool | int, ...]:
    """How the text encoder can be had, quickest first, as `from_pretrained(stream_text=)`.

    On a CPU, numbers that are narrower on disk than they are computed with stay in the file: that
    is as quick as a copy and half of its size.
    """
    if wish.cached or not facts.streamable:
        return (False,)
    stored = facts.stored["text_encoder"]
    if machine.device.type == "cpu" and stored < wish.dtype.itemsize:
        return int(stored * parameters(T5Encoder, facts.text_encoder)), True
    return False, True


def settled(
    facts: Facts, wish: Wish, machine: Machine, stream: bool | int, way: str, placement: Mode
) -> Plan:
    """The plan of these choices, whether it fits or not."""
    text = text_part(facts, wish, machine, stream)
    parts = (text, transformer_part(facts, wish, machine), decoder_part(facts, wish, machine, way))
    where = {"model": "brought when it works", "sequential": "layer by layer"}
    if placement != "resident":
        # the autoencoder comes in one piece: strips read its weights outside its layers
        told = (where[placement], where[placement], where["model"])
        parts = tuple(  # type: ignore[assignment]
            replace(p, way=p.way.replace("resident", w)) for p, w in zip(parts, told, strict=True)
        )
    layer = max(part.weights for part in parts) // 20
    everything = sum(part.weights for part in parts)
    held = {
        "resident": [everything] * len(parts),
        "model": [part.weights for part in parts],
        "sequential": [layer, layer, parts[2].weights],
    }[placement]
    most = max(weights + part.work for weights, part in zip(held, parts, strict=True))
    peak = machine.base + SPARE + most
    return Plan(
        name=facts.name,
        wish=wish,
        machine=machine,
        parts=parts,
        peak=int(peak),
        stream_text=stream,
        decode=way,
        placement=placement,
    )


def text_part(facts: Facts, wish: Wish, machine: Machine, stream: bool | int) -> PartPlan:
    """The text encoder for a prompt and, under guidance, the empty one."""
    config = facts.text_encoder
    if wish.cached:
        none = Cost(flops=0.0, num_bytes=0)
        return _part("text encoder", "from the prompt cache", wish, machine, 0, none)
    cost = text_cost(config, wish.tokens)
    num = parameters(T5Encoder, config)
    stored = facts.stored["text_encoder"] * num
    cost = cost.times(1 + 1 / wish.tokens if wish.guided else 1)
    if not stream:
        weights = num * wish.dtype.itemsize
        return _part("text encoder", "resident", wish, machine, weights, cost)
    block = BLOCK_ROWS * config.d_ff * wish.dtype.itemsize
    if stream > 1:
        return _part(
            "text encoder", "in its file", wish, machine, stored, cost.beside(block), stored
        )  # fmt: skip
    pages = facts.stored["text_encoder"] * most_at_once(matrices(config))
    reading = stored * (2 if wish.guided else 1)
    cost = cost.beside(block)
    return _part("text encoder", "streamed", wish, machine, 0, cost, reading, pages)


def transformer_part(facts: Facts, wish: Wish, machine: Machine) -> PartPlan:
    """All steps, with the ControlNets, which work where it does."""
    config, controls = facts.transformer, facts.controls
    factor = facts.autoencoder.factor
    size = wish.height // factor, wish.width // factor
    seen, num_windows = size, 1
    if wish.window is not None:
        seen = wish.window[0] // factor, wish.window[1] // factor
        num_windows = len(layout(size, seen))
    cost = step_cost(config, *seen, wish.rows, wish.tokens, controls)
    weights = parameters(PixArtTransformer, config)
    weights += sum(parameters(outline.network, config) for outline in controls)
    cost = cost.times(wish.steps * num_windows).in_precision(wish.dtype)
    num = len(controls)
    with_them = f", with {num} control{'s' * (num > 1)}" if controls else ""
    way = f"resident{with_them}"
    return _part("transformer", way, wish, machine, weights * wish.dtype.itemsize, cost)


def decoder_part(facts: Facts, wish: Wish, machine: Machine, way: str) -> PartPlan:
    """The pictures one by one, with what is encoded before: that takes less memory than decoding.

    Finished ones wait as numbers of four bytes, and once more where they are put together.
    """
    config, pixels = facts.autoencoder, wish.height * wish.width
    cost = decode_cost(config, way, wish.height, wish.width)
    encoded = (len(facts.controls) + wish.begins) * encode_flops(config) * pixels
    cost = cost.times(wish.pictures)
    cost = replace(cost, flops=cost.flops + encoded)
    cost = cost.beside(24 * pixels * (wish.pictures - 1))
    weights = parameters(KLAutoencoder, config) * wish.dtype.itemsize
    cost = cost.in_precision(wish.dtype)
    return _part("autoencoder", f"resident, {way}", wish, machine, weights, cost)


def _part(
    name: str,
    way: str,
    wish: Wish,
    machine: Machine,
    weights: float,
    cost: Cost,
    reading: float = 0.0,
    pages: float = 0.0,
) -> PartPlan:
    """`reading` are bytes that come from a file, `pages` the most of them that lie in memory."""
    seconds = None
    if machine.flops and machine.bandwidth:
        seconds = (cost.flops - cost.attention) / (machine.flops * SHARE[name])
        seconds += cost.attention / (machine.attention or machine.flops)
        seconds += reading / machine.bandwidth
    precision = str(wish.dtype).removeprefix("torch.")
    return PartPlan(
        name=name,
        way=way,
        device=str(machine.device),
        precision=precision,
        weights=int(weights),
        work=int(cost.num_bytes * SCRATCH + pages),
        seconds=seconds,
    )


def advise(facts: Facts, plan: Plan, smallest: Plan) -> Iterator[str]:
    """What would make a plan smaller, and what faster."""
    wish, machine = plan.wish, plan.machine
    if smallest.peak < 0.95 * plan.peak:
        told = "the text encoder streamed and " if smallest.stream_text else ""
        how = f"{told}--decode {smallest.decode}"
        yield f"smaller: --memory {gigabytes(smallest.peak * 1.01)} is enough with {how}"
    if not facts.streamable:
        yield "smaller: a text encoder in safetensors can be streamed"
    alone = replace(wish, pictures=1)
    if wish.pictures > 1 and (least := least_of(facts, alone, machine)) < 0.97 * smallest.peak:
        yield f"smaller: one at a time (--batch 1 -n 1) needs {gigabytes(least)}"
    half = replace(wish, width=wish.width // 32 * 16, height=wish.height // 32 * 16)
    if min(half.width, half.height) >= 128:
        less = least_of(facts, half, machine)
        if less < 0.97 * smallest.peak:
            yield f"smaller: {half.width}x{half.height} needs {gigabytes(less)}"
    if plan.decode != "strips-half" and plan.decode.startswith("strips"):
        other = settled(facts, wish, machine, plan.stream_text, "strips-half", plan.placement)
        if other.peak < 0.97 * plan.peak:
            yield f"smaller: --decode strips-half needs {gigabytes(other.peak)}, within 1e-3"
    if not wish.cached and plan.parts[0].weights + plan.parts[0].work > 10**9:
        yield "faster: with --prompt-cache a prompt that comes again needs no text encoder"
    if wish.guided:
        yield "faster: --guidance 1 takes half the time a step, for models that were distilled"


def least_of(facts: Facts, wish: Wish, machine: Machine) -> int:
    """The peak of the smallest plan."""
    return min(plan.peak for plan in candidates(facts, wish, machine))


def gigabytes(num: float) -> str:
    """Bytes as a person reads them, and --memory takes them."""
    return f"{num / 1e9:.3g}GB"
