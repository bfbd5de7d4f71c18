"""Adapters on a pipeline: stacked, weighted, taken off to the last bit, for one request alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.small import (
    SIGMA,
    same,
    small_pipeline,
    small_transformer,
)
from torch import Tensor

from pixsigma import (
    InputError,
    LoraChoice,
    MismatchError,
    MissingWeightsError,
    PixArtSigmaPipeline,
    UnknownNameError,
)
from pixsigma import adapters as module
from pixsigma.requests import GenerationRequest
from pixsigma.weights.folder import read_transformer, save_transformer

WIDTH = SIGMA.width
KEY = "blocks.0.attn.qkv.weight"
FAST: dict[str, Any] = {"num_inference_steps": 2, "width": 32, "height": 32, "seed": 4}


def pipeline(transformer: Any = None) -> PixArtSigmaPipeline:
    return small_pipeline(transformer=transformer or small_transformer())


def adapter(folder: Path, seed: int, module: str = "to_q", dtype: Any = torch.float32) -> Path:
    """A file for the queries (or keys, values) of the first block and for a layer beside them."""
    g = torch.Generator().manual_seed(seed)
    name = f"transformer.transformer_blocks.0.attn1.{module}"
    tensors = {
        f"{name}.lora_A.weight": torch.randn(2, WIDTH, generator=g) / 8,
        f"{name}.lora_B.weight": torch.randn(WIDTH, 2, generator=g) / 8,
        "transformer.proj_out.lora_A.weight": torch.randn(2, WIDTH, generator=g) / 8,
        "transformer.proj_out.lora_B.weight": torch.randn(32, 2, generator=g) / 8,
    }
    file = folder / f"style{seed}.safetensors"
    save_file({k: v.to(dtype) for k, v in tensors.items()}, str(file))
    return file


def weights(pipe: PixArtSigmaPipeline) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in pipe.transformer.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def latents(pipe: PixArtSigmaPipeline, *files: Path, **settings: Any) -> Tensor:
    choices = [{"path": str(file)} for file in files]
    *_, final = pipe.stream("a cat", **(FAST | {"loras": choices} | settings))
    assert final.latents is not None
    return final.latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_off_again_to_the_last_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    pipe = pipeline(small_transformer().to(dtype))
    plain = weights(pipe)
    tensors = {key: value.data_ptr() for key, value in pipe.transformer.state_dict().items()}
    pipe.load_lora(adapter(tmp_path, 1), weight=0.7)
    pipe.load_lora(adapter(tmp_path, 2, "to_v", dtype), weight=-3)
    changed = {key for key, value in weights(pipe).items() if not torch.equal(value, plain[key])}
    assert changed == {KEY, "final_layer.linear.weight"}
    assert {value.dtype for value in weights(pipe).values()} == {dtype}
    pipe.unload_loras()
    assert equal(weights(pipe), plain)
    # Not even a copy: weights that were mapped from a file are so again.
    assert tensors == {k: v.data_ptr() for k, v in pipe.transformer.state_dict().items()}


def test_a_stack_is_a_sum_and_weights_change_without_the_files(tmp_path: Path) -> None:
    pipe = pipeline()
    plain, deltas = weights(pipe), []
    files = [adapter(tmp_path, 1), adapter(tmp_path, 2, "to_q"), adapter(tmp_path, 3, "to_k")]
    for file in files:
        report = pipe.load_lora(file)
        assert (report.dialect, report.num_modules, report.path) == ("diffusers", 2, str(file))
        pipe.set_loras({file.stem: 1.0})
        deltas.append({key: value - plain[key] for key, value in weights(pipe).items()})
        file.rename(file.with_suffix(".gone"))
    chosen = {"style1": 0.5, "style2": -2.0, "style3": 1.25}
    pipe.set_loras(chosen)
    for key, value in weights(pipe).items():
        total = sum(w * d[key] for w, d in zip(chosen.values(), deltas, strict=True))
        torch.testing.assert_close(value, plain[key] + total, rtol=1e-5, atol=1e-6)
    pipe.set_loras({"style2": 0.0})
    assert equal(weights(pipe), plain)
    pipe.set_loras({"style3": 1})
    torch.testing.assert_close(weights(pipe)[KEY], plain[KEY] + deltas[2][KEY])
    pipe.set_loras({})
    assert equal(weights(pipe), plain)


def test_only_its_rows_of_a_fused_weight_change(tmp_path: Path) -> None:
    pipe = pipeline()
    plain = weights(pipe)[KEY]
    pipe.load_lora(adapter(tmp_path, 1, "to_k"))
    same_rows = (weights(pipe)[KEY] == plain).all(dim=1)
    assert same_rows.tolist() == [True] * WIDTH + [False] * WIDTH + [True] * WIDTH


def test_names_and_weights_are_checked_and_nothing_changes(tmp_path: Path) -> None:
    pipe = pipeline()
    file = adapter(tmp_path, 1)
    pipe.load_lora(file, "ink", 0.5)
    before = weights(pipe)
    with pytest.raises(InputError, match="'ink' is loaded; pass another name="):
        pipe.load_lora(file, "ink")
    for weight in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="must be a finite number"):
            pipe.load_lora(file, "other", weight)
        with pytest.raises(InputError, match=r"must be a finite number, got .* for ink"):
            pipe.set_loras({"ink": weight})
    with pytest.raises(UnknownNameError, match="loaded adapters are ink; got pencil"):
        pipe.set_loras({"pencil": 1.0})
    with pytest.raises(MissingWeightsError):
        pipe.load_lora(tmp_path / "none.safetensors")
    save_file({"nothing.alpha": torch.ones(1)}, str(tmp_path / "bad.safetensors"))
    with pytest.raises(MismatchError):
        pipe.load_lora(tmp_path / "bad.safetensors")
    assert equal(weights(pipe), before) and pipe.loras.weights == {"ink": 0.5}


def test_a_pipeline_without_a_transformer_says_so(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.transformer = None
    with pytest.raises(MissingWeightsError, match="no transformer to put an adapter on"):
        pipe.load_lora(adapter(tmp_path, 1))


def test_fused_weights_are_saved_and_stay(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.load_lora(adapter(tmp_path, 1), weight=0.7)
    with pytest.raises(InputError, match=r"fuse_loras\(\) or unload_loras\(\) first, got style1"):
        pipe.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    merged = weights(pipe)
    pipe.fuse_loras()
    pipe.unload_loras()
    assert equal(weights(pipe), merged)
    pipe.save_pretrained(tmp_path / "model")
    assert same(read_transformer(tmp_path / "model"), pipe.transformer)
    pipe.load_lora(adapter(tmp_path, 1))
    pipe.unload_loras()
    assert equal(weights(pipe), merged)


def test_a_mapped_file_is_not_written_to(tmp_path: Path) -> None:
    save_transformer(small_transformer(), tmp_path / "transformer")
    pipe = pipeline(read_transformer(tmp_path))
    pipe.load_lora(adapter(tmp_path, 1))
    assert same(read_transformer(tmp_path), small_transformer())
    pipe.unload_loras()
    assert same(pipe.transformer, small_transformer())


def test_a_request_has_adapters_of_its_own(tmp_path: Path) -> None:
    pipe, one, two = pipeline(), adapter(tmp_path, 1), adapter(tmp_path, 2)
    plain, before = latents(pipe), weights(pipe)
    with_one = latents(pipe, one)
    assert not torch.allclose(plain, with_one, rtol=1e-3)
    assert equal(weights(pipe), before)
    assert torch.equal(latents(pipe), plain)
    assert torch.equal(latents(pipe, loras=[{"path": str(one), "weight": 0.0}]), plain)
    pipe.load_lora(one)
    assert torch.equal(latents(pipe), with_one)
    both = latents(pipe, two)
    assert torch.equal(latents(pipe), with_one)
    assert torch.equal(latents(pipeline(), one, two), both)


def test_the_call_of_diffusers_draws_with_them(tmp_path: Path) -> None:
    pipe = pipeline()
    call: dict[str, Any] = {"num_inference_steps": 1, "height": 32, "width": 32}
    call |= {"output_type": "latent", "use_resolution_binning": False}

    def draw() -> Any:
        return pipe("a cat", generator=torch.Generator().manual_seed(0), **call).images

    plain = draw()
    pipe.load_lora(adapter(tmp_path, 1))
    assert not torch.allclose(draw(), plain)
    pipe.unload_loras()
    assert torch.equal(draw(), plain)


def test_requests_drawn_by_turns_do_not_mix(tmp_path: Path) -> None:
    pipe, file = pipeline(), adapter(tmp_path, 1)
    alone = latents(pipe), latents(pipe, file)
    streams: list[Iterator[Any]] = [
        pipe.stream("a cat", **FAST),
        pipe.stream("a cat", **FAST, loras=[{"path": str(file)}]),
    ]
    ends: list[Any] = [None, None]
    for _ in range(6):
        for i, stream in enumerate(streams):
            ends[i] = next(stream)
    assert [end.stage for end in ends] == ["done", "done"]
    assert torch.equal(ends[0].latents, alone[0]) and torch.equal(ends[1].latents, alone[1])
    assert pipe.loras.in_effect == ()


def test_cancelling_takes_them_off(tmp_path: Path) -> None:
    pipe = pipeline()
    before = weights(pipe)
    stream = pipe.stream("a cat", **FAST, loras=[{"path": str(adapter(tmp_path, 1))}])
    next(stream)
    next(stream)
    assert not equal(weights(pipe), before)
    stream.close()  # type: ignore[attr-defined]
    assert equal(weights(pipe), before)


def test_a_request_with_a_bad_file_fails_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="there is none at"):
        next(pipeline().stream("a cat", **FAST, loras=[{"path": str(tmp_path / "none")}]))


def test_a_failure_half_way_is_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline()
    plain = weights(pipe)
    pipe.load_lora(adapter(tmp_path, 1))
    merged, whole = weights(pipe), module.merge

    def broken(network: Any, wanted: Any, base: Any) -> None:
        whole(network, wanted, base)
        raise MemoryError

    monkeypatch.setattr(module, "merge", broken)
    with pytest.raises(MemoryError):
        pipe.load_lora(adapter(tmp_path, 2))
    monkeypatch.undo()
    pipe.set_loras({"style1": 1.0})
    assert equal(weights(pipe), merged)
    pipe.unload_loras()
    assert equal(weights(pipe), plain)


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_every_placement(tmp_path: Path, mode: str) -> None:
    file = adapter(tmp_path, 1)
    expected = latents(pipeline(), file)
    pipe = pipeline()
    pipe.load_lora(file)
    getattr(pipe, f"enable_{mode}_cpu_offload")("cpu")
    torch.testing.assert_close(latents(pipe), expected)
    pipe.set_loras({})
    torch.testing.assert_close(latents(pipe, file), expected)
    pipe.set_loras({"style1": 1.0})
    torch.testing.assert_close(latents(pipe), expected)
    pipe.unload_loras()
    pipe.to("cpu")
    assert same(pipe.transformer, small_transformer())


def test_a_transformer_that_was_replaced(tmp_path: Path) -> None:
    pipe, old, new = pipeline(), small_transformer(), small_transformer()
    pipe.transformer = old
    pipe.load_lora(adapter(tmp_path, 1))
    pipe.transformer = new
    with pytest.raises(InputError, match="it was replaced; call unload_loras"):
        pipe.set_loras({"style1": 0.5})
    pipe.unload_loras()
    assert same(old, small_transformer()) and same(new, small_transformer())
    pipe.load_lora(adapter(tmp_path, 1))
    assert not same(new, small_transformer())


def test_a_wrapped_transformer_is_looked_into(tmp_path: Path) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self._orig_mod = inner

    pipe = pipeline()
    pipe.transformer = Wrapped(pipe.transformer)
    assert pipe.load_lora(adapter(tmp_path, 1)).num_modules == 2


def test_a_folder_gives_its_name(tmp_path: Path) -> None:
    (tmp_path / "ink").mkdir()
    adapter(tmp_path / "ink", 1)
    pipe = pipeline()
    pipe.load_lora(tmp_path / "ink")
    assert pipe.loras.weights == {"ink": 1.0}


def test_choices_are_data() -> None:
    request = GenerationRequest(prompt="x", loras=(LoraChoice(path="a", weight=-2),))
    assert GenerationRequest.model_validate(request.model_dump()) == request
    assert GenerationRequest.model_validate_json(request.model_dump_json()) == request
