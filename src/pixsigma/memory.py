"""Before anything loads: what will be where, what it takes at its peak, how long it will last."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, TypeAlias

import torch

from pixsigma.config import AutoencoderConfig, T5Config, TransformerConfig
from pixsigma.errors import OutOfMemoryError
from pixsigma.machine import Machine
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.controlled import Control, Controlled
from pixsigma.models.narrow import BLOCK_ROWS
from pixsigma.models.strips import decode_strips, sheet_room
from pixsigma.models.t5 import T5Encoder
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.rehearsal import Cost, rehearse
from pixsigma.weights.controls import Outline
from pixsigma.weights.facts import Facts
from pixsigma.weights.streaming import in_order, most_at_once

Mode: TypeAlias = Literal["resident", "model", "sequential"]

EXACT_WAYS = ("whole", "strips", "strips-spill")
"""Ways of decoding that a plan takes by itself: the picture must not depend on the machine."""

SHARE = {"text encoder": 0.6, "transformer": 0.85, "autoencoder": 0.7}
"""What each part reaches of the rate of a large product."""

SPARE = 60_000_000
"""Bytes on top of what is counted: stacks of threads, code of kernels, the allocator's gaps."""

SCRATCH = 1.2
"""What kernels take beside the activations, as a share of them."""

SAMPLE = 512
"""Side in pixels at which strips are rehearsed; beyond it they are in proportion."""


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


def make_plan(facts: Facts, wish: Wish, machine: Machine) -> Plan:
    """The first of the possible plans that fits, quickest first; else the smallest one.

    Its advice says what would make it smaller or faster.
    """
    plans = list(candidates(facts, wish, machine))
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
    rows = 2 if wish.guided else 1
    cost = step_cost(config, wish.height // 8, wish.width // 8, rows, wish.tokens, controls)
    weights = parameters(PixArtTransformer, config)
    weights += sum(parameters(outline.network, config) for outline in controls)
    cost = cost.times(wish.steps).in_precision(wish.dtype)
    num = len(controls)
    with_them = f", with {num} control{'s' * (num > 1)}" if controls else ""
    way = f"resident{with_them}"
    return _part("transformer", way, wish, machine, weights * wish.dtype.itemsize, cost)


def decoder_part(facts: Facts, wish: Wish, machine: Machine, way: str) -> PartPlan:
    """One picture, and a hint for each ControlNet: encoding one takes less memory than decoding."""
    config = facts.autoencoder
    cost = decode_cost(config, way, wish.height, wish.width)
    hints = len(facts.controls) * encode_flops(config) * wish.height * wish.width
    cost = replace(cost, flops=cost.flops + hints)
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


# What the networks take, in fp32


@cache
def parameters(network: Any, *settings: Any) -> int:
    """How many numbers the weights are."""
    with torch.device("meta"):
        return sum(p.numel() for p in network(*settings).parameters())


@cache
def matrices(config: T5Config) -> tuple[int, ...]:
    """How many numbers each matrix has that a streamed text encoder reads, in its order."""
    with torch.device("meta"):
        net = T5Encoder(config)
    return tuple(net.get_parameter(name).numel() for name in in_order(config))


@cache
def text_cost(config: T5Config, tokens: int) -> Cost:
    """One prompt."""
    with torch.device("meta"):
        net, ids = T5Encoder(config), torch.zeros(1, tokens, dtype=torch.int64)
    return rehearse(lambda: net(ids, ids.bool()))


@cache
def step_cost(
    config: TransformerConfig,
    height: int,
    width: int,
    rows: int,
    tokens: int,
    controls: tuple[Outline, ...] = (),
) -> Cost:
    """One step of latents of this size, with what stands beside the transformer."""
    with torch.device("meta"):
        base = PixArtTransformer(config)
        hint = torch.empty(1, config.in_channels, height, width)
        beside = [Control(outline.network(config), hint) for outline in controls]
        net: Any = Controlled(base, beside) if beside else base
        x, t = torch.empty(rows, config.in_channels, height, width), torch.empty(1)
        text = torch.empty(1, tokens, config.caption_channels)
        captions = [net.read(text, leading=True) if beside else net.read(text)] * rows
    return rehearse(lambda: net(x, net.embed(t), captions, variance=False))


@cache
def encode_flops(config: AutoencoderConfig) -> float:
    """A pixel of a picture."""
    with torch.device("meta"):
        net, images = KLAutoencoder(config), torch.empty(1, 3, SAMPLE, SAMPLE)
    return rehearse(lambda: net.encode(images)).flops / SAMPLE**2


@cache
def decode_cost(config: AutoencoderConfig, way: str, height: int, width: int) -> Cost:
    """One picture in pixels; strips of large ones in proportion to small ones."""
    if way == "whole":
        return _decoded(config, "whole", height, width)
    if way == "tiles":
        side = config.sample_size
        tile = _decoded(config, "whole", min(side, height), min(side, width))
        pixels = height * width
        again = 1.0 if max(height, width) <= side else 16 / 9  # each is shifted by 3/4 of its side
        share = pixels * again / (min(side, height) * min(side, width))
        return tile.times(share).beside(24 * pixels)
    most = max(height, width)
    factor = config.factor
    small = tuple(
        max(factor, side * min(SAMPLE, most) // most // factor * factor) for side in (height, width)
    )
    sample = _decoded(config, way, small[0], small[1])
    ratio = height * width / (small[0] * small[1])
    numbers = config.block_out_channels[-1] * height * width / factor**2
    attention = 4.0 * (numbers / config.block_out_channels[-1]) * numbers
    itemsize = {"strips": 4, "strips-half": 2, "strips-spill": 0}[way]
    pixels = height * width
    fixed = max(0, sample.num_bytes - sheet_room(config, small[0] * small[1], itemsize))
    # keys, values and queries of the middle; the picture and a copy of it
    growing = max(sheet_room(config, pixels, itemsize), 12 * numbers) + 24 * pixels
    flops = (sample.flops - attention / ratio**2) * ratio + attention
    return Cost(flops=flops, attention=attention, num_bytes=int(fixed + growing))


def _decoded(config: AutoencoderConfig, way: str, height: int, width: int) -> Cost:
    factor = config.factor
    with torch.device("meta"):
        net = KLAutoencoder(config)
        z = torch.empty(1, config.latent_channels, height // factor, width // factor)
    if way == "whole":
        return rehearse(lambda: net.decode(z))
    keep: Literal["exact", "half"] = "half" if way == "strips-half" else "exact"
    cost = rehearse(lambda: decode_strips(net, z, keep=keep))
    if way != "strips-spill":
        return cost
    kept = sheet_room(config, height * width, 4)
    return replace(cost, num_bytes=max(0, cost.num_bytes - kept))


def advise(facts: Facts, plan: Plan, smallest: Plan) -> Iterator[str]:
    """What would make a plan smaller, and what faster."""
    wish, machine = plan.wish, plan.machine
    if smallest.peak < 0.95 * plan.peak:
        told = "the text encoder streamed and " if smallest.stream_text else ""
        how = f"{told}--decode {smallest.decode}"
        yield f"smaller: --memory {gigabytes(smallest.peak * 1.01)} is enough with {how}"
    if not facts.streamable:
        yield "smaller: a text encoder in safetensors can be streamed"
    half = replace(wish, width=wish.width // 32 * 16, height=wish.height // 32 * 16)
    if min(half.width, half.height) >= 128:
        less = min(candidates(facts, half, machine), key=lambda found: found.peak)
        if less.peak < 0.97 * smallest.peak:
            yield f"smaller: {half.width}x{half.height} needs {gigabytes(less.peak)}"
    if plan.decode != "strips-half" and plan.decode.startswith("strips"):
        other = settled(facts, wish, machine, plan.stream_text, "strips-half", plan.placement)
        if other.peak < 0.97 * plan.peak:
            yield f"smaller: --decode strips-half needs {gigabytes(other.peak)}, within 1e-3"
    if not wish.cached and plan.parts[0].weights + plan.parts[0].work > 10**9:
        yield "faster: with --prompt-cache a prompt that comes again needs no text encoder"
    if wish.guided:
        yield "faster: --guidance 1 takes half the time a step, for models that were distilled"


def gigabytes(num: float) -> str:
    """Bytes as a person reads them, and --memory takes them."""
    return f"{num / 1e9:.3g}GB"
