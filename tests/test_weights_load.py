"""Loading: strict, without a copy, and a mismatch is told in the words of the file."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.small import SIGMA, TEXT, same, small_text_encoder, small_transformer
from torch import nn

from pixsigma.config import KVCompression
from pixsigma.errors import MismatchError
from pixsigma.models.t5 import T5Encoder
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.weights.files import open_tensors, save_tensors
from pixsigma.weights.keymaps import DIFFUSERS, OFFICIAL, T5
from pixsigma.weights.load import MAX_LISTED, load_into

BUILD = partial(PixArtTransformer, SIGMA)


def test_the_network_takes_the_tensors_themselves():
    state = small_transformer().state_dict()
    model = load_into(BUILD, state, OFFICIAL)
    assert same(model, small_transformer())
    assert all(v.data_ptr() == state[k].data_ptr() for k, v in model.state_dict().items())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_loaded_network_computes_as_the_saved_one(tmp_path: Path):
    theirs = small_transformer()
    save_tensors(DIFFUSERS.to_theirs(theirs.state_dict()), tmp_path / "w.safetensors")
    ours = load_into(BUILD, open_tensors(tmp_path / "w.safetensors"), DIFFUSERS)
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 5, 16)
    with torch.no_grad():
        # Mapped weights lie at other addresses, which the last bit of a product may depend on.
        torch.testing.assert_close(ours(x, t, text), theirs(x, t, text), rtol=1e-5, atol=1e-5)


def test_types_are_cast_as_asked():
    state = small_transformer().state_dict()
    model = load_into(BUILD, state, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    kept = load_into(BUILD, {k: v.half() for k, v in state.items()})
    assert {p.dtype for p in kept.parameters()} == {torch.float16}


def test_the_overflowing_layers_of_t5_stay_fp32_under_fp16():
    state = T5.to_theirs(small_text_encoder().encoder.state_dict())
    choose = partial(T5Encoder.storage_dtype, dtype=torch.float16)
    model = load_into(partial(T5Encoder, TEXT), state, T5, dtype=choose)
    wide = {k for k, v in model.state_dict().items() if v.dtype == torch.float32}
    assert wide == {f"blocks.{i}.mlp.wo.weight" for i in range(TEXT.num_layers)}


def test_a_missing_tensor_is_told_by_the_name_that_the_file_would_have():
    state = dict(DIFFUSERS.to_theirs(small_transformer().state_dict()))
    del state["transformer_blocks.1.attn1.to_k.weight"]
    with pytest.raises(MismatchError) as caught:
        load_into(BUILD, state, DIFFUSERS)
    assert "missing: transformer_blocks.1.attn1.to_k.weight" in str(caught.value)
    assert "missing: transformer_blocks.1.attn1.to_q.weight" not in str(caught.value)


def test_a_wrong_shape_is_told_with_both_shapes():
    state = dict(small_transformer().state_dict())
    state["final_layer.linear.weight"] = torch.zeros(16, 72)
    expected = r"final_layer\.linear\.weight is \(16, 72\), expected \(32, 72\)"
    with pytest.raises(MismatchError, match=expected):
        load_into(BUILD, state)


def test_a_report_is_bounded_and_counts_the_rest():
    with pytest.raises(MismatchError) as caught:
        load_into(BUILD, {f"net.{i}": torch.zeros(1) for i in range(1000)})
    text = str(caught.value)
    assert text.count("\n") < 3 * MAX_LISTED + 5
    assert "1000 are not expected" in text
    assert "not expected: and 995 more" in text


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        (replace(SIGMA, kv_compression=KVCompression(layers=(0,))), "has KV compression"),
        (replace(SIGMA, qk_norm=True), "has query-key norms"),
        (replace(SIGMA, use_additional_conditions=True), "is a PixArt-α"),
    ],
)
def test_a_report_says_what_the_mismatch_may_mean(config, hint):
    with pytest.raises(MismatchError, match=f"perhaps: the file {hint}"):
        load_into(BUILD, small_transformer(config).state_dict(), OFFICIAL)


def test_every_kind_of_weight_is_loaded():
    """Buffers and integers too, though our networks have none."""

    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
            self.weight = nn.Parameter(torch.zeros(2))

    state = {"count": torch.tensor(7), "weight": torch.ones(2)}
    model = load_into(Counter, state, dtype=torch.float16)
    assert int(model.count) == 7
    assert model.weight.dtype == torch.float16
