"""T5 v1.1 against transformers' T5EncoderModel, same small random weights in both."""

import copy
import re

import pytest
import torch
from torch import Tensor

from pixsigma.config import T5Config
from pixsigma.models.t5 import T5Encoder, distance_bucket

SIZES = {"vocab_size": 99, "d_model": 48, "d_kv": 12, "num_heads": 3, "d_ff": 80, "num_layers": 3}


@pytest.fixture(scope="module")
def theirs():
    from transformers import T5Config as TheirConfig
    from transformers import T5EncoderModel

    torch.manual_seed(0)
    model = T5EncoderModel(TheirConfig(**SIZES, feed_forward_proj="gated-gelu")).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.1)
        else:
            weight.data.uniform_(0.5, 1.5)
    model.shared.weight.data.normal_(0, 1)
    return model


@pytest.fixture
def ours(theirs) -> T5Encoder:
    encoder = T5Encoder(T5Config(**SIZES)).eval()
    state = theirs.state_dict()
    state.pop("encoder.embed_tokens.weight")
    encoder.load_state_dict({our_key(key): value.clone() for key, value in state.items()})
    return encoder


def our_key(key: str) -> str:
    renamed = {
        "shared.weight": "embed.weight",
        "encoder.final_layer_norm.weight": "final_norm.weight",
    }
    if key in renamed:
        return renamed[key]
    if "relative_attention_bias" in key:
        return "position_bias.weight"
    for theirs, ours in (
        ("encoder.block.", "blocks."),
        ("layer.0.layer_norm", "attn_norm"),
        ("layer.1.layer_norm", "mlp_norm"),
        ("layer.0.SelfAttention", "attn"),
        ("layer.1.DenseReluDense", "mlp"),
    ):
        key = re.sub(re.escape(theirs), ours, key)
    return key


def inputs(length: int = 150) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 99, (3, length), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(length) < torch.tensor([[length], [length // 3], [1]])
    return ids, mask


@torch.no_grad()
def test_equal_in_fp32(theirs, ours):
    ids, mask = inputs()
    wanted = theirs(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(ours(ids, mask)[mask], wanted[mask], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_equal_without_a_mask(theirs, ours):
    ids, _ = inputs(40)
    torch.testing.assert_close(ours(ids), theirs(ids).last_hidden_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_close_in_half_types(ours, dtype):
    ids, mask = inputs()
    exact = ours(ids, mask)[mask]
    half = ours.to(dtype)(ids, mask)[mask]
    assert half.dtype is dtype
    assert relative_error(half, exact) < {torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]


@torch.no_grad()
def test_bf16_is_as_close_to_fp32_as_theirs(theirs, ours):
    ids, mask = inputs()
    exact = ours(ids, mask)[mask]
    half = copy.deepcopy(theirs).bfloat16()
    wanted = half(ids, attention_mask=mask.long()).last_hidden_state[mask]
    mine = ours.bfloat16()(ids, mask)[mask]
    assert relative_error(mine, wanted.float()) < 2e-2
    assert relative_error(mine, exact) < 1.2 * relative_error(wanted, exact)


def relative_error(given: Tensor, wanted: Tensor) -> float:
    return float((given.float() - wanted).norm() / wanted.norm())


def test_half_leaves_the_overflowing_layer_in_fp32(ours):
    before = ours.blocks[1].mlp.wo.weight.clone()
    ours.half()
    for key, weight in ours.state_dict().items():
        assert weight.dtype is T5Encoder.storage_dtype(key, torch.float16), key
    # Not rounded on the way either: fp16 and back would lose 13 bits.
    assert torch.equal(ours.blocks[1].mlp.wo.weight, before)


@torch.no_grad()
def test_fp16_survives_large_activations(ours):
    for block in ours.blocks:
        block.mlp.wi_0.weight.mul_(40)
        block.mlp.wi_1.weight.mul_(40)
        block.mlp.wo.weight.mul_(40)
    ids, mask = inputs(30)
    exact = ours(ids, mask)[mask]
    assert relative_error(ours.half()(ids, mask)[mask], exact) < 1e-2


@torch.no_grad()
def test_a_row_without_tokens_stays_finite(ours):
    ids, mask = inputs(10)
    mask[2] = False
    assert ours(ids, mask).isfinite().all()


def test_buckets_equal_the_reference():
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-400, 401)
    wanted = T5Attention._relative_position_bucket(distances, True, 32, 128)
    assert torch.equal(distance_bucket(distances, 32, 128), wanted)
