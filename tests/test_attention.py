"""Attention by either of its two ways: the same values and gradients, each where it should be."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pixsigma.models import attention as module
from pixsigma.models.attention import WRITTEN_OUT, attention
from small import small_transformer

MASKS = ("none", "padded", "a text without a token")


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Queries that the fused kernel was given."""
    calls: list[Any] = []

    def spied(q: Tensor, *others: Any, **options: Any) -> Tensor:
        calls.append(q)
        return scaled_dot_product_attention(q, *others, **options)

    monkeypatch.setattr(module, "scaled_dot_product_attention", spied)
    yield calls


def inputs(dtype: torch.dtype, tokens: int = 16, words: int = 6) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = [(3, 2, tokens, 8), (3, 2, words, 8), (3, 2, words, 8)]
    return [torch.randn(shape, generator=rng).to(dtype).requires_grad_() for shape in shapes]


def mask_of(kind: str, words: int = 6) -> Tensor | None:
    if kind == "none":
        return None
    lengths = torch.tensor([2, words, 0 if kind == MASKS[2] else 1])
    return (torch.arange(words) < lengths[:, None])[:, None, None]


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """Values and gradients of the formula in float64; 0 for a text without a token."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).exp()
    if mask is not None:
        weights = weights * mask
    y = weights @ v / weights.sum(dim=-1, keepdim=True).clamp(min=1e-9)
    return y, *torch.autograd.grad(y.sin().sum(), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MASKS)
def test_small_matrices_are_written_out_with_the_same_gradients(
    dtype: torch.dtype, kind: str, fused: list[Any]
) -> None:
    q, k, v = inputs(dtype)
    mask = mask_of(kind)
    y = attention(q, k, v, mask)
    found = (y, *torch.autograd.grad(y.sin().sum(), (q, k, v)))
    assert not fused
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    for ours, true in zip(found, exact(q, k, v, mask), strict=True):
        assert ours.dtype == dtype
        assert (ours - true).norm() <= bound * true.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MASKS)
def test_both_ways_answer_alike(
    dtype: torch.dtype, kind: str, fused: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = inputs(dtype)
    answers = []
    for most in (2**16, 0):
        monkeypatch.setitem(WRITTEN_OUT, dtype, most)
        y = attention(q, k, v, mask_of(kind))
        answers.append((y, *torch.autograd.grad(y.sin().sum(), (q, k, v))))
    assert len(fused) == 1
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    for one, other in zip(*answers, strict=True):
        assert (one - other).float().norm() <= bound * other.float().norm()


def test_without_gradients_or_with_many_pairs_the_kernel_is_asked(fused: list[Any]) -> None:
    for dtype, most in WRITTEN_OUT.items():
        with torch.no_grad():
            attention(*inputs(dtype))
        assert len(fused) == 1
        attention(*inputs(dtype, tokens=most // 8, words=8))
        assert len(fused) == 1
        attention(*inputs(dtype, tokens=most // 8 + 1, words=8))
        assert len(fused) == 2
        fused.clear()
    attention(*inputs(torch.float64))
    assert len(fused) == 1


def test_a_network_in_training_writes_out_and_drawing_does_not(fused: list[Any]) -> None:
    model = small_transformer()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 900.0])
    text = torch.randn(2, 5, model.config.caption_channels)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    trained = model(x, t, text, mask)
    assert not fused
    with torch.no_grad():
        drawn = model(x, t, text, mask)
    assert len(fused) == 2 * model.config.num_layers
    torch.testing.assert_close(trained, drawn, rtol=1e-4, atol=1e-4)
