"""Our transformer against diffusers', with its random weights brought over by our key map."""

from typing import Any

import pytest
import torch

from pixsigma.config import TransformerConfig
from pixsigma.interfaces import Conditions
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.weights.keymaps import DIFFUSERS
from pixsigma.weights.load import load_into

BASE = {
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "caption_channels": 20,
    "sample_size": 8,
    "interpolation_scale": 0.5,
}


def pair(**changes: Any) -> tuple[Any, PixArtTransformer]:
    """diffusers' network with weights of every kind random, and ours with the same."""
    from diffusers import PixArtTransformer2DModel

    values = BASE | changes
    qk_norm = values.pop("qk_norm", False)
    width = values["num_attention_heads"] * values["attention_head_dim"]
    torch.manual_seed(0)
    theirs = PixArtTransformer2DModel(
        **{"use_additional_conditions": False} | values,
        cross_attention_dim=width,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    ).eval()
    if qk_norm:
        for block in theirs.transformer_blocks:
            block.attn1.q_norm, block.attn1.k_norm = (torch.nn.LayerNorm(width) for _ in range(2))
            block.attn1.set_processor(NormedAttention())
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.08)
    config = TransformerConfig(**values, qk_norm=qk_norm)
    return theirs, load_into(lambda: PixArtTransformer(config), theirs.state_dict(), DIFFUSERS)


class NormedAttention:
    """diffusers' attention with the authors' full-width norms, which diffusers has not."""

    def __call__(self, attn: Any, hidden_states: Any, *_: Any, **__: Any) -> Any:
        x, heads = hidden_states, attn.heads
        q, k = attn.q_norm(attn.to_q(x)), attn.k_norm(attn.to_k(x))
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, attn.to_v(x)))
        scores = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        return attn.to_out[0]((scores @ v).transpose(1, 2).flatten(2))


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def outputs(theirs: Any, ours: Any, h: int, w: int, extra: Conditions | None = None) -> float:
    torch.manual_seed(1)
    x, text = torch.randn(3, 4, h, w), torch.randn(3, 9, ours.config.caption_channels)
    t = torch.tensor([999.0, 431.25, 0.0])
    mask = torch.arange(9) < torch.tensor([[1], [9], [5]])
    added = {
        "resolution": extra.resolution if extra else None,
        "aspect_ratio": extra.aspect_ratio if extra else None,
    }
    with torch.no_grad():
        expected = theirs(
            x,
            encoder_hidden_states=text,
            encoder_attention_mask=mask.float(),
            timestep=t,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return relative_error(ours(x, t, text, mask, extra), expected)


@pytest.mark.parametrize(("sample_size", "scale"), [(8, 0.5), (16, 1.0), (32, 2.0), (64, 4.0)])
@pytest.mark.parametrize("size", [(8, 8), (12, 6)])
def test_every_interpolation_scale(sample_size: int, scale: float, size: tuple[int, int]) -> None:
    theirs, ours = pair(sample_size=sample_size, interpolation_scale=scale)
    assert outputs(theirs, ours, *size) <= 1e-5


@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"num_layers": 42}])
def test_variants(changes: dict[str, Any]) -> None:
    theirs, ours = pair(**changes)
    assert outputs(theirs, ours, 8, 10) <= 1e-5


def test_micro_conditions() -> None:
    theirs, ours = pair(use_additional_conditions=True)
    sizes = torch.tensor([[1024.0, 1024.0], [768.0, 1344.0], [512.0, 2048.0]])
    extra = Conditions(sizes, sizes[:, :1] / sizes[:, 1:])
    assert outputs(theirs, ours, 8, 6, extra) <= 1e-5
    assert outputs(theirs, ours, 8, 6, Conditions(sizes * 0.5, extra.aspect_ratio * 2)) <= 1e-5


def test_the_key_map_has_an_inverse() -> None:
    theirs, ours = pair()
    back = DIFFUSERS.to_theirs(ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in theirs.state_dict().items())
