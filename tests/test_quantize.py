"""Eight bits: near the full precision, the same picture alone and in company, whole round trips."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.test_adapters_pipeline import adapter

from pixsigma.adapters import put, whole
from pixsigma.config import TransformerConfig
from pixsigma.errors import InputError, MismatchError, MissingExtraError, UnknownNameError
from pixsigma.measuring import relative_error
from pixsigma.models import quantized as engine
from pixsigma.models.quantized import (
    Int8Linear,
    Int16Linear,
    has_int8,
    quantize_halves,
    quantize_rows,
    with_int8,
)
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.quantize import GPU_MODES, by_torchao, check_mode, is_quantized, quantized
from pixsigma.weights.convert import convert
from pixsigma.weights.folder import open_transformer, save_folder, save_transformer
from small import (
    SIGMA,
    small_autoencoder,
    small_pipeline,
    small_text_encoder,
    small_transformer,
)

MODES = ("int8", "int8-fast")

BFLOAT16 = engine.has_bfloat16(torch.device("cpu"))
IN_8_BITS = 0.06 if engine.saturates() else 0.04
"""Of a step in 8 bits; where a CPU adds in 16 weights have 7."""
LAYER_BOUND = 6e-3 if BFLOAT16 else 2e-4
"""Of one layer of 16 bits: bf16 has 8 of them, and rounds the answer too."""
EDGE = 1e-2 if BFLOAT16 else 1e-3
"""Of a few steps: what is on the edge between two numbers falls to either side, by the last bit."""

pytestmark = pytest.mark.skipif(not engine.supported(), reason="this torch is without oneDNN")


def int8_linear(num_in: int = 64, num_out: int = 96) -> tuple[torch.nn.Linear, Int8Linear]:
    torch.manual_seed(0)
    linear = torch.nn.Linear(num_in, num_out).requires_grad_(False)
    layer = Int8Linear(num_in, num_out)
    weight, scale = quantize_rows(linear.weight)
    layer.load_state_dict({"weight": weight, "weight_scale": scale, "bias": linear.bias})
    return linear, layer


def int16_linear(num_in: int = 64, num_out: int = 96) -> tuple[torch.nn.Linear, Int16Linear]:
    torch.manual_seed(0)
    linear = torch.nn.Linear(num_in, num_out).requires_grad_(False)
    layer = Int16Linear(num_in, num_out)
    high, low, scale = quantize_halves(linear.weight)
    state = {"weight": high, "weight_low": low, "weight_scale": scale, "bias": linear.bias}
    layer.load_state_dict(state)
    return linear, layer


def step(model: PixArtTransformer, rows: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    text = torch.randn(1, 5, model.config.caption_channels, generator=g).expand(rows, -1, -1)
    x = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for _ in range(rows)])
    with torch.no_grad():
        return model(x, torch.full((rows,), 500.0), text)


def check_same(found: PixArtTransformer, expected: PixArtTransformer) -> None:
    """The same weights to the last bit; sums vary with where they lie, and what is rounded."""
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert relative_error(step(found), step(expected)) <= EDGE


def test_rows_keep_half_a_step_of_their_own_scale() -> None:
    weight = torch.randn(8, 32) * torch.logspace(-3, 3, 8)[:, None]
    numbers, scale = quantize_rows(weight)
    assert numbers.dtype == torch.int8 and int(numbers.abs().amax()) == 127
    assert bool(((weight - numbers * scale[:, None]).abs() <= scale[:, None] * 0.5001).all())
    assert quantize_rows(torch.zeros(2, 4))[0].count_nonzero() == 0


def test_two_halves_keep_16_bits_of_a_row() -> None:
    weight = torch.randn(8, 32) * torch.logspace(-3, 3, 8)[:, None]
    weight[0, :2] = torch.tensor([1.0, -1.0])  # the largest and the smallest number there are
    high, low, scale = quantize_halves(weight)
    found = scale[:, None] * (high + low / 256)
    assert bool(((weight - found).abs() <= scale[:, None] / 256 * 0.51).all())
    assert int(high.amax()) == 127
    assert quantize_halves(torch.zeros(2, 4))[1].count_nonzero() == 0


@pytest.mark.parametrize("shape", [(7, 64), (3, 5, 64), (2, 1, 64)])
@pytest.mark.parametrize("post", ["none", "gelu"])
@pytest.mark.parametrize("bfloat16", [False, BFLOAT16])
def test_a_layer_of_16_bits_is_nearly_the_full_one(
    shape: tuple[int, ...], post: Any, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "has_bfloat16", lambda device: bfloat16)
    linear, layer = int16_linear()
    bound = LAYER_BOUND if bfloat16 else 2e-4
    x = torch.randn(shape)
    expected = linear(x)
    if post == "gelu":
        expected = torch.nn.functional.gelu(expected, approximate="tanh")
    assert layer(x, post).shape == expected.shape
    assert relative_error(layer(x, post), expected) < bound
    assert relative_error(layer(x - 50), linear(x - 50)) < bound
    assert relative_error(layer(torch.zeros(shape)), linear(torch.zeros(shape))) < bound


def test_16_bits_are_computed_in_float32_by_cpus_that_add_in_16_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear, layer = int16_linear()
    x = torch.rand(40, 64)
    monkeypatch.setattr(engine, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(engine, "saturates", lambda: True)
    assert relative_error(layer(x), linear(x)) < 1e-4
    expected = torch.nn.functional.gelu(linear(x), approximate="tanh")
    assert relative_error(layer(x, "gelu"), expected) < 1e-4


@pytest.mark.parametrize("shape", [(7, 64), (3, 5, 64), (2, 1, 64)])
def test_a_layer_is_near_the_full_one(shape: tuple[int, ...]) -> None:
    linear, layer = int8_linear()
    x = torch.randn(shape)
    assert layer(x).shape == linear(x).shape
    assert relative_error(layer(x), linear(x)) < 0.02


def test_gelu_comes_with_the_product() -> None:
    linear, layer = int8_linear()
    x = torch.randn(2, 9, 64)
    expected = torch.nn.functional.gelu(linear(x), approximate="tanh")
    assert relative_error(layer(x, "gelu"), expected) < 0.02


def test_cpus_that_add_in_16_bits_get_weights_of_7(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, layer = int8_linear()
    x = torch.rand(40, 64)
    monkeypatch.setattr(engine, "saturates", lambda: True)
    assert relative_error(layer(x), linear(x)) < 0.02


@pytest.mark.parametrize("made", [int8_linear, int16_linear])
def test_what_is_not_finite_stays_so(made: Any) -> None:
    _, layer = made()
    x = torch.randn(3, 64)
    x[1, 2] = torch.inf
    assert not layer(x)[1].isfinite().any()


@pytest.mark.parametrize(
    ("mode", "bound"), [("int8", 2e-2 if BFLOAT16 else 5e-4), ("int8-fast", IN_8_BITS)]
)
def test_one_step_is_within_the_bound_of_its_mode(mode: str, bound: float) -> None:
    model = small_transformer()
    small = quantized(model, mode)
    assert 0 < relative_error(step(small), step(model)) < bound
    assert has_int8(small) and not has_int8(model)
    blocks = [name for name in small.state_dict() if name.endswith("weight_scale")]
    assert len(blocks) == 7 * SIGMA.num_layers


@pytest.mark.parametrize("made", [int8_linear, int16_linear])
def test_a_layer_answers_each_picture_alone(made: Any) -> None:
    _, layer = made()
    x = torch.randn(1, 9, 64)
    beside = torch.cat([1000 * x, x, x - 300])
    torch.testing.assert_close(layer(beside)[1:2], layer(x), rtol=0, atol=1e-6)


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    small = quantized(small_transformer(), "int8-fast")
    together, alone = step(small, rows=3), step(small, rows=1)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_the_text_is_read_finely_in_every_mode(mode: str) -> None:
    model = small_transformer()
    text = torch.randn(2, 9, model.config.caption_channels)
    with torch.no_grad():
        exact, found = model.read(text, None), quantized(model, mode).read(text, None)
    for words, expected in zip(found, exact, strict=True):
        assert relative_error(words.keys, expected.keys) < 5e-4
        assert relative_error(words.values, expected.values) < 5e-4


def test_layers_that_match_are_left_alone_and_shared() -> None:
    model = small_transformer()
    small = quantized(model, keep=r"blocks\.0\..*")
    assert small.blocks[0].attn.qkv.weight is not None
    assert not has_int8(small.blocks[0]) and has_int8(small.blocks[1])
    assert small.blocks[0].mlp.fc1.weight.data_ptr() == model.blocks[0].mlp.fc1.weight.data_ptr()


def test_one_layer_of_a_pair_may_stay() -> None:
    model = small_transformer()
    for keep in (r".*fc1", r".*fc2", r".*\.attn\.qkv", r".*\.attn\.proj"):
        for mode in MODES:
            assert relative_error(step(quantized(model, mode, keep=keep)), step(model)) < IN_8_BITS


@pytest.mark.parametrize("mode", MODES)
def test_quantised_weights_are_saved_and_read_back_to_the_last_bit(
    mode: str, tmp_path: Path
) -> None:
    small = quantized(small_transformer(), mode)
    save_transformer(small, tmp_path / "transformer")
    opened = open_transformer(tmp_path)
    assert opened.tensors["blocks.0.attn.qkv.weight"].dtype == torch.int8
    check_same(opened.load(torch.float32), small)
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "pixsigma-int8"


@pytest.mark.parametrize("mode", MODES)
def test_reading_in_int8_is_quantising_what_was_read(mode: str, tmp_path: Path) -> None:
    model = small_transformer()
    save_transformer(model, tmp_path / "transformer")
    read = open_transformer(tmp_path).load(int8=mode)
    check_same(read, quantized(model, mode))


def test_a_pipeline_saves_and_loads_and_draws_the_same(tmp_path: Path) -> None:
    parts = {"text_encoder": small_text_encoder(), "autoencoder": small_autoencoder()}
    save_folder(tmp_path / "full", transformer=small_transformer(), **parts)
    pipe = PixArtSigmaPipeline.from_pretrained(tmp_path / "full", quantize="int8")
    pipe.save_pretrained(tmp_path / "small")
    again = PixArtSigmaPipeline.from_pretrained(tmp_path / "small")
    check_same(again.transformer, pipe.transformer)
    *_, first = pipe.stream("a cat", seed=1, num_inference_steps=2, width=64, height=64)
    *_, second = again.stream("a cat", seed=1, num_inference_steps=2, width=64, height=64)
    assert relative_error(second.latents, first.latents) <= EDGE


def test_a_copy_packs_its_weights_anew() -> None:
    small = quantized(small_transformer())
    expected = step(small)
    assert torch.equal(step(copy.deepcopy(small)), expected)


@pytest.mark.parametrize("mode", MODES)
def test_adapters_go_on_quantised_weights_and_off_to_the_last_bit(
    mode: str, tmp_path: Path
) -> None:
    file = adapter(tmp_path, 1)
    full, pipe = small_pipeline(), small_pipeline(transformer=quantized(small_transformer(), mode))
    plain, state = step(pipe.transformer), pipe.transformer.state_dict()
    rounding = relative_error(plain, step(full.transformer))
    for each in (full, pipe):
        each.load_lora(file)
    moved = step(pipe.transformer)
    assert relative_error(moved, plain) > 5 * rounding  # else the next line tells nothing
    assert relative_error(moved, step(full.transformer)) < 2 * rounding
    pipe.unload_loras()
    assert torch.equal(step(pipe.transformer), plain)
    found = pipe.transformer.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in found.items())


def test_less_than_a_step_of_8_bits_is_added_all_the_same() -> None:
    linear, layer = int8_linear()
    network = torch.nn.ModuleDict({"a": layer})
    change = torch.full_like(linear.weight, float(layer.weight_scale.min()) / 5)
    put(network, "a.weight", whole(layer, torch.device("cpu")) + change)
    added = network["a"].whole() - layer.whole()
    assert relative_error(added, change) < 0.1


def test_fused_adapters_are_saved_quantised(tmp_path: Path) -> None:
    pipe = small_pipeline(transformer=quantized(small_transformer(), "int8-fast"))
    pipe.load_lora(adapter(tmp_path, 1))
    pipe.fuse_loras()
    expected = step(pipe.transformer)
    save_transformer(pipe.transformer, tmp_path / "fused")
    again = open_transformer(tmp_path / "fused").load(dtype=torch.float32)
    assert torch.equal(step(again), expected)


def test_adapters_do_not_go_on_what_torchao_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixsigma.adapters.by_others", lambda network: True)
    with pytest.raises(InputError, match="that torchao quantised"):
        small_pipeline().load_lora(tmp_path / "any.safetensors")


def test_modes_that_cannot_be_had_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="int8, int8-fast, int8-weights"):
        check_mode("int3")
    with pytest.raises(InputError, match="--device cpu"):
        check_mode("int8", torch.device("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install torchao"):
        check_mode("fp8-weights")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA device"):
        check_mode("fp8-weights")
    check_mode(None)


def test_a_quantised_model_is_not_converted(tmp_path: Path) -> None:
    save_transformer(quantized(small_transformer()), tmp_path / "transformer")
    with pytest.raises(MismatchError, match="8 bits"):
        convert(tmp_path, tmp_path / "out.pth", to="pth")


def test_only_linear_layers_are_quantised() -> None:
    with torch.device("meta"):
        model = PixArtTransformer(TransformerConfig(num_layers=1))
    for name in ("x_embedder.proj", "blocks.7.attn.qkv"):
        with pytest.raises(InputError, match="linear layers"):
            with_int8(model, [name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", GPU_MODES)
def test_modes_of_torchao_are_near_and_not_saved(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    model = small_transformer()
    expected = step(model)
    try:
        small = by_torchao(model, mode, None, device="cpu")
    except MissingExtraError as error:
        pytest.skip(f"{error}")
    except InputError as error:  # torchao passes over widths that do not fit, and says nothing
        assert mode == "int4-weights" and "takes no layer" in str(error)
        return
    assert is_quantized(small)
    assert 0 < relative_error(step(small), expected) < 0.1
    with pytest.raises(InputError, match="save the model before quantising"):
        save_transformer(small, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_package_that_torchao_wants_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torchao = pytest.importorskip("torchao.quantization")

    def refuse(*_: Any, **__: Any) -> None:
        raise ImportError("Requires mslk")

    monkeypatch.setattr(torchao, "quantize_", refuse)
    with pytest.raises(MissingExtraError, match="Requires mslk"):
        by_torchao(small_transformer(), "int4-weights", None, device="cpu")
