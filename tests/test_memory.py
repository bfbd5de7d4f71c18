"""Plans: what the networks are found to take, which plan is chosen, and who follows it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.small import small_autoencoder, small_text_encoder, small_transformer
from torch import nn
from typer.testing import CliRunner

from pixsigma.cli import app, fitting
from pixsigma.config import AutoencoderConfig, T5Config, TransformerConfig
from pixsigma.costs import _decoded, decode_cost, parameters
from pixsigma.errors import InputError, MissingWeightsError, OutOfMemoryError
from pixsigma.machine import Machine, available_memory, parse_memory, resident_memory, this_machine
from pixsigma.memory import Plan, Wish, candidates, make_plan, require
from pixsigma.models.controlnet import ControlNet
from pixsigma.models.t5 import T5Encoder
from pixsigma.needs import needs_of
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.rehearsal import rehearse
from pixsigma.requests import GenerationRequest
from pixsigma.weights.controls import Outline, save_control
from pixsigma.weights.facts import Facts, facts_of
from pixsigma.weights.folder import save_folder
from pixsigma.weights.prompt_cache import CachedT5
from pixsigma.weights.streaming import StreamedT5

GB = 10**9
CPU = Machine(device=torch.device("cpu"), memory=40 * GB, base=GB // 4, flops=1e11, bandwidth=1e10)
CUDA = replace(CPU, device=torch.device("cuda"), base=0, flops=1e14)
XL = Facts(
    name="xl",
    transformer=TransformerConfig(),
    text_encoder=T5Config(),
    autoencoder=AutoencoderConfig(),
    stored={"transformer": 2.0, "text_encoder": 2.0, "autoencoder": 4.0},
)
PICTURE = Wish(width=512, height=512, tokens=20)


def plan(memory: float, machine: Machine = CPU, facts: Facts = XL, **wish: Any) -> Plan:
    return make_plan(facts, replace(PICTURE, **wish), replace(machine, memory=int(memory)))


def test_rehearsals_count_products_and_what_is_alive() -> None:
    with torch.device("meta"):
        first, second = nn.Linear(10, 40, bias=False), nn.Linear(40, 10, bias=False)
        x = torch.empty(5, 10)
    cost = rehearse(lambda: second(first(x)))
    assert cost.flops == 2 * 5 * 10 * 40 * 2
    # the hidden values live until the last product is there
    assert cost.num_bytes == 4 * 5 * (40 + 10)


def test_attention_is_rehearsed_without_its_weights() -> None:
    q = torch.empty(1, 2, 1000, 8, device="meta")
    cost = rehearse(lambda: nn.functional.scaled_dot_product_attention(q, q, q))
    assert cost.num_bytes == q.nbytes
    assert cost.flops == cost.attention == 4 * 2 * 1000 * 1000 * 8
    twice = cost.times(2).beside(9)
    assert (twice.flops, twice.attention) == (2 * cost.flops, 2 * cost.flops)
    assert twice.num_bytes == q.nbytes + 9
    assert cost.in_precision(torch.float16).num_bytes == q.nbytes // 2


def test_parameters_are_the_published_numbers() -> None:
    assert 4.7e9 < parameters(T5Encoder, T5Config()) < 4.8e9


def test_plenty_of_memory_keeps_everything() -> None:
    made = plan(40 * GB)
    assert (made.decode, made.placement) == ("whole", "resident")
    # what is narrower on disk stays there, and takes half of what a copy in fp32 would
    assert made.stream_text == 2 * parameters(T5Encoder, T5Config())
    assert made.fits and 4.7e9 * 2 < made.peak < 4.7e9 * 4
    wide = replace(XL, stored={**XL.stored, "text_encoder": 4.0})
    assert plan(40 * GB, facts=wide).stream_text is False
    assert plan(12 * GB, facts=wide).stream_text is True


def test_less_memory_streams_then_decodes_in_strips() -> None:
    peaks = {}
    for limit in (20, 6, 3.6):
        made = plan(limit * GB, width=1024, height=1024)
        peaks[limit] = made
        assert made.stream_text
    assert peaks[20].decode == "whole" and peaks[20].stream_text > 1
    assert peaks[6].decode == "whole" or peaks[6].decode == "strips"
    assert peaks[3.6].decode != "whole"
    assert peaks[20].peak >= peaks[6].peak > peaks[3.6].peak


def test_the_published_model_fits_four_gigabytes() -> None:
    made = plan(4 * GB, width=1024, height=1024, tokens=77)
    assert made.fits, made.peak
    assert made.seconds is not None and made.seconds > 60


def test_what_fits_nowhere_is_refused_with_advice() -> None:
    made = plan(1 * GB, width=2048, height=2048)
    assert not made.fits
    with pytest.raises(OutOfMemoryError, match=r"xl at 2048x2048 needs .*GB at least.*1024x1024"):
        require(made)
    assert require(plan(40 * GB)).fits


def test_plans_by_themselves_are_exact_and_wishes_are_kept() -> None:
    ways = {found.decode for found in candidates(XL, PICTURE, CPU)}
    assert ways == {"whole", "strips", "strips-spill"}
    assert plan(40 * GB, decode="strips-half").decode == "strips-half"
    assert not plan(40 * GB, cached=True).stream_text
    assert plan(40 * GB, cached=True).peak < 8 * GB
    pickles = replace(XL, streamable=False)
    assert not any(found.stream_text for found in candidates(pickles, PICTURE, CPU))


def test_a_graphics_card_gets_parts_as_it_has_room() -> None:
    half = {"dtype": torch.float16}
    assert plan(40 * GB, CUDA, **half).placement == "resident"
    small = plan(1.9 * GB, CUDA, **half)
    assert small.stream_text
    tiny = plan(0.9 * GB, CUDA, **half)
    assert tiny.placement != "resident"
    assert small.peak > tiny.peak


def test_controlnets_are_counted_where_the_transformer_works() -> None:
    published = Outline(num_copied=13)
    plain, one, two = (
        plan(40 * GB, facts=replace(XL, controls=(published,) * num)) for num in (0, 1, 2)
    )
    network, followed = plain.parts[1], one.parts[1]
    # 13 of 28 blocks and their links, in the published design 46 % more of everything
    assert 1.4 < followed.weights / network.weights < 1.55
    assert followed.seconds and network.seconds
    assert 1.4 < followed.seconds / network.seconds < 1.55
    assert followed.work > network.work
    more = two.parts[1].weights - followed.weights
    assert more == followed.weights - network.weights
    assert one.peak - plain.peak >= more
    assert followed.way == "resident, with 1 control" and two.parts[1].way.endswith("s")
    # a hint is encoded, for half of what the picture's decoding takes
    assert plain.parts[2].seconds and one.parts[2].seconds
    assert 1.3 < one.parts[2].seconds / plain.parts[2].seconds < 1.8


def test_strips_of_large_pictures_are_in_proportion() -> None:
    config = AutoencoderConfig()
    guess, found = decode_cost(config, "strips", 640, 768), _decoded(config, "strips", 640, 768)
    assert guess.flops == pytest.approx(found.flops, rel=0.1)
    assert guess.num_bytes == pytest.approx(found.num_bytes, rel=0.15)
    way = {w: decode_cost(config, w, 4096, 4096) for w in ("strips", "strips-half", "strips-spill")}
    sizes = [cost.num_bytes for cost in way.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 6 * GB and sizes[2] < 3 * GB


def test_facts_of_what_is_here_and_what_is_not() -> None:
    mini = facts_of("mini")
    assert mini.here and mini.streamable and mini.stored["transformer"] == 2
    far = facts_of("sigma-1024")
    assert far.text_encoder == T5Config() and far.transformer.sample_size == 128
    with pytest.raises(MissingWeightsError):
        facts_of("nowhere/at-all.pth")


def test_sizes_of_memory() -> None:
    given = {"4GB": 4e9, "3.5gib": 3.5 * 2**30, "900 MB": 9e8, "1000": 1000, "2k": 2000}
    assert {text: parse_memory(text) for text in given} == given
    for wrong in ("", "many", "4XB", "-1GB", "0GB"):
        with pytest.raises(InputError, match="such as 4GB"):
            parse_memory(wrong)
    assert resident_memory() > 0 and available_memory() > 0
    machine = this_machine(torch.device("cpu"), torch.float32)
    assert (
        machine.flops and machine.attention and machine.bandwidth and machine.memory > machine.base
    )


@pytest.mark.parametrize("size", ["8x8", "1000x1000"])
def test_no_plan_is_made_for_a_size_that_is_not_drawn(size: str) -> None:
    result = CliRunner().invoke(app, ["plan", "--size", size])
    assert result.exit_code == 2 and "16" in result.stderr


def test_no_plan_is_made_for_a_size_that_this_model_does_not_draw() -> None:
    result = CliRunner().invoke(app, ["plan", "--model", "mini", "--size", "144x256"])
    assert result.exit_code == 2 and "multiples of 32" in result.stderr


def test_the_command_tells_a_plan_and_fails_where_nothing_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # of a command, not of a process that has run other tests
    monkeypatch.setattr("pixsigma.machine.resident_memory", lambda: 400_000_000)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["plan", "--size", "128x128", *arguments])

    told = run()
    assert told.exit_code == 0, told.stderr
    assert "text encoder  cpu, in its file" in told.stdout and "peak" in told.stdout
    row = json.loads(run("--json", "--memory", "1.5GB", "--decode", "strips").stdout)
    assert row["decode"] == "strips" and row["fits"] and row["memory_bytes"] == 1.5e9
    assert [part["name"] for part in row["parts"]] == [
        "text encoder",
        "transformer",
        "autoencoder",
    ]
    poor = run("--memory", "100MB")
    assert poor.exit_code == 1 and "more than" in poor.stdout
    assert run("--decode", "stripes").exit_code == 2


def test_a_plan_is_for_the_guidance_that_suits_the_model(tmp_path: Path) -> None:
    save_folder(
        tmp_path,
        transformer=small_transformer(),
        text_encoder=small_text_encoder(),
        autoencoder=small_autoencoder(),
        guidance_scale=1.0,
    )
    asked = partial(
        fitting.plan_for, str(tmp_path), size=None, device=CPU.device, dtype=torch.float32
    )
    assert not asked().wish.guided
    assert asked(guidance=2.0).wish.guided


def test_the_commands_count_controlnets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_transformer()
    state = ControlNet.copy_of(base, 1).state_dict()
    save_control(state, base, tmp_path, kind="edges", variant="sigma")
    run = ["plan", "--size", "64x64", "--json", "--controlnet", f"edges={tmp_path}"]
    made = json.loads(CliRunner().invoke(app, run).stdout)
    assert made["parts"][1]["way"] == "resident, with 1 control"
    told = facts_of("mini", controlnets=[tmp_path, tmp_path / "controlnet.safetensors"])
    assert told.controls == (Outline(num_copied=1),)
    monkeypatch.setattr(fitting, "load", lambda *a: a[3])
    hint = {"kind": "edges", "hint": "x.png", "network": str(tmp_path)}
    request = GenerationRequest.model_validate({"prompt": "x", "control": [hint]})
    drawn = fitted(tmp_path, memory="40GB", requests=[request])
    assert drawn.parts[1].way == "resident, with 1 control"  # type: ignore[attr-defined]


def fitted(tmp_path: Path, **changes: Any) -> PixArtSigmaPipeline:
    settings: dict[str, Any] = {
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "memory": None,
        "decode": "auto",
        "prompt_cache": "auto",
        "text_and_vae": None,
    }
    requests = changes.pop("requests", [GenerationRequest(prompt="x")])
    return fitting.fitted("mini", requests, **settings | changes)


def test_a_pipeline_follows_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fitted(tmp_path)
    assert plain.decoding == "whole" and isinstance(plain.text_encoder.encoder, T5Encoder)
    made = make_plan(facts_of("mini"), replace(PICTURE, decode="strips"), CPU)
    monkeypatch.setattr(fitting, "planned", lambda *a, **k: replace(made, stream_text=True))
    close = fitted(tmp_path, memory="4GB", decode="strips")
    assert close.decoding == "strips" and isinstance(close.text_encoder.encoder, StreamedT5)
    monkeypatch.setattr(fitting, "planned", lambda *a, **k: replace(made, placement="model"))
    assert fitted(tmp_path, memory="4GB").placement.mode == "model"
    cached = fitted(tmp_path, prompt_cache=str(tmp_path / "kept"))
    assert isinstance(cached.text_encoder.encoder, CachedT5)


def test_too_little_memory_is_refused_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "load", lambda *a: pytest.fail("loaded"))
    with pytest.raises(OutOfMemoryError, match="mini at 256x256 needs"):
        fitted(tmp_path, memory="50MB")


def test_large_drawings_are_planned_without_being_asked() -> None:
    mini, small = facts_of("mini"), Wish(width=128, height=128)
    large = replace(small, width=1024, height=1024)
    assert fitting.needs_plan(mini, [small, large], torch.float32)
    assert fitting.needs_plan(mini, [replace(small, pictures=300)], torch.float32)
    assert not fitting.needs_plan(mini, [small], torch.float32)
    assert fitting.needs_plan(XL, [small], torch.float32)
    assert fitting.cache_folder("auto", mini) is None
    assert fitting.cache_folder("auto", XL) is not None
    assert fitting.cache_folder("off", XL) is None
    nobodys = "~no-such-person/kept"
    assert fitting.cache_folder(nobodys, XL) == Path(nobodys)


# What requests ask for


def asked(*requests: dict[str, Any], at_once: int = 1) -> tuple[Wish, ...]:
    """Of a model of 256 pixels; `image` is as large as it says."""
    made = [GenerationRequest.model_validate({"prompt": "x"} | request) for request in requests]
    mini = facts_of("mini")
    made = [fitting.sized(request, mini.default_size, mini.multiple, None) for request in made]
    return needs_of(made, mini, at_once)


def test_a_picture_counts_as_large_as_it_is_drawn(tmp_path: Path) -> None:
    Image.new("RGB", (1000, 600)).save(tmp_path / "in.png")
    image = {"image": str(tmp_path / "in.png")}
    (plain,) = asked({})
    assert (plain.width, plain.height, plain.begins) == (256, 256, False)
    (edited,) = asked(image)
    assert (edited.width, edited.height, edited.begins) == (1024, 608, True)
    (extended,) = asked(image | {"extend": {"left": 200}})
    assert extended.width == 1216
    (scaled,) = asked(image | {"width": 64, "height": 32})
    assert (scaled.width, scaled.height) == (64, 32)
    (tiled,) = asked(image | {"tiled": True})
    assert (tiled.width, tiled.window) == (1024, (256, 256))
    mask = Image.new("L", (1000, 600))
    mask.paste(255, (10, 10, 20, 20))
    mask.save(tmp_path / "mask.png")
    (cropped,) = asked(image | {"mask": str(tmp_path / "mask.png"), "inpaint_crop": True})
    assert cropped.width < 400
    with pytest.raises(InputError, match="cannot be read"):
        asked({"image": str(tmp_path / "none.png")})


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, 2),
        ({"guidance_scale": 1.0}, 1),
        ({"guidance_scale": 1.0, "guidance": {"cfgpp": 0.6}}, 2),
        ({"guidance": {"pag": 3.0}}, 3),
        ({"regions": [{"prompt": "a", "box": (0, 0, 0.5, 1)}] * 2}, 4),
        ({"prompt": "a AND b AND c", "prompt_syntax": "weighted"}, 4),
        ({"num_images": 3}, 6),
    ],
)
def test_every_row_of_a_batch_counts(settings: dict[str, Any], rows: int) -> None:
    (wish,) = asked(settings)
    assert wish.rows == rows
    seen: list[int] = []
    pipe = PixArtSigmaPipeline.from_pretrained("mini")
    pipe.transformer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    made: dict[str, Any] = {"prompt": "x", "width": 64, "height": 64, "seed": 0}
    made |= {"num_inference_steps": 1, "sampler": "euler"}
    list(pipe.stream(GenerationRequest.model_validate(made | settings)))
    assert max(seen) == rows


def test_pictures_that_share_batches_count_together_up_to_what_one_holds() -> None:
    small = {"width": 64, "height": 64}
    assert asked(*[small] * 5, at_once=4)[0].pictures == 4
    assert asked(*[small] * 3, at_once=4)[0].pictures == 3
    large = {"width": 2048, "height": 2048}
    assert asked(*[large] * 5, at_once=4)[0].pictures == 2
    assert asked(large | {"num_images": 5}, at_once=4)[0].pictures == 5  # one request is not parted
    many = {"width": 128, "height": 128, "num_images": 300}
    largest, widest = asked(large, many, at_once=1)
    assert (largest.width, widest.pictures) == (2048, 300)


def test_more_pictures_and_rows_take_more_and_one_at_a_time_is_advised() -> None:
    one, four = (plan(40 * GB, pictures=num) for num in (1, 4))
    assert four.parts[1].work > 3 * one.parts[1].work
    assert four.parts[2].work > one.parts[2].work
    assert four.seconds and one.seconds and 3 < four.seconds / one.seconds < 4.5
    assert plan(40 * GB, beside=2).parts[1].work > 1.5 * one.parts[1].work
    tiled = plan(40 * GB, width=2048, height=2048, window=(512, 512))
    assert tiled.parts[1].work == one.parts[1].work
    assert (tiled.parts[1].seconds or 0) > 16 * (one.parts[1].seconds or 0)
    with pytest.raises(OutOfMemoryError, match=r"one at a time \(--batch 1 -n 1\) needs"):
        require(plan(2 * GB, width=1024, height=1024, pictures=20))


def test_one_plan_serves_several_wishes() -> None:
    """A large picture has to be decoded in strips, a batch of small ones has not."""
    large = replace(PICTURE, width=1536, height=1536)
    many = replace(PICTURE, pictures=4)
    limits = [found.peak for found in candidates(XL, large, CPU)]
    machine = replace(CPU, memory=min(limits) + GB // 4)
    both = make_plan(XL, many, machine, large)
    assert both.wish == large and both.fits and both.decode != "whole"
    assert both.peak == make_plan(XL, large, machine, many).peak
    assert make_plan(XL, many, machine).decode == "whole"
    assert not make_plan(XL, many, replace(CPU, memory=min(limits) - 1), large).fits


def test_the_plan_is_of_what_asks_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "load", lambda *a: a[3])
    Image.new("RGB", (1504, 1008)).save(tmp_path / "photo.png")
    photo = GenerationRequest(prompt="x", image=str(tmp_path / "photo.png"))
    made: Any = fitted(tmp_path, requests=[GenerationRequest(prompt="x"), photo])
    assert (made.wish.width, made.wish.height) == (1504, 1024)
    with pytest.raises(OutOfMemoryError, match="mini at 1504x1024 needs"):
        fitted(tmp_path, requests=[photo], memory="500MB")
    shaped: Any = fitted(tmp_path, memory="40GB", aspect=(2, 1))
    assert (shaped.wish.width, shaped.wish.height) == (352, 192)
