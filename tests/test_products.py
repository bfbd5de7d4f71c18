"""Linear layers by either library: the same numbers, and torch's own wherever more is asked."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, linear

from pixsigma.measuring import relative_error
from pixsigma.models import products
from pixsigma.models.attention import attention, coarse_attention
from pixsigma.models.embeddings import Mlp
from pixsigma.models.products import Linear

needs_onednn = pytest.mark.skipif(
    not products.has_onednn_linear(), reason="this torch is without oneDNN"
)
needs_bfloat16 = pytest.mark.skipif(
    not products.has_bfloat16(torch.device("cpu")), reason="bf16 products are very slow here"
)


@pytest.fixture(params=[False, pytest.param(True, marks=needs_onednn)])
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Linear:
    """By MKL, then by oneDNN, whatever this CPU is."""
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: request.param)
    torch.manual_seed(0)
    return Linear(40, 24)


@torch.no_grad()
def test_a_product_is_that_of_torch(layer: Linear) -> None:
    x = torch.randn(2, 40, 7).mT  # not contiguous
    expected = linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    expected = gelu(expected, approximate="tanh")
    torch.testing.assert_close(layer(x, "gelu"), expected, rtol=1e-5, atol=1e-5)
    assert layer(x[:, :0]).shape == (2, 0, 24)


@needs_onednn
@torch.no_grad()
def test_rows_are_of_few_numbers_for_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps something of every number that it meets, for good."""
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: True)
    layer, x = Linear(24, 8), torch.randn(600, 24)
    expected = linear(x, layer.weight, layer.bias)
    for rows in (1, 17, 519, 600):
        torch.testing.assert_close(layer(x[:rows]), expected[:rows], rtol=1e-5, atol=1e-5)
    numbers = range(1, 2049)
    assert len({products.rounded(rows) for rows in numbers}) == 16 + 7 * 8
    assert all(rows <= products.rounded(rows) < rows * 1.13 for rows in range(1, 20_000))
    strips = {most: products.strip(most) for most in range(1, 20_000)}
    assert all(products.rounded(rows) == rows for rows in strips.values())
    assert all(rows <= most < rows * 1.13 for most, rows in strips.items())


def test_gradients_flow(layer: Linear) -> None:
    layer(torch.randn(3, 40), "gelu").sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.count_nonzero() > 0


@torch.no_grad()
def test_autocast_is_heeded(layer: Linear) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 40)).dtype is torch.bfloat16


@torch.no_grad()
def test_what_an_adapter_adds_goes_through_the_gelu() -> None:
    class Adapted(nn.Module):
        def __init__(self, base: Linear) -> None:
            super().__init__()
            self.base, self.out_features = base, base.out_features

        def forward(self, x: torch.Tensor, *more: object) -> torch.Tensor:
            return self.base(x, *more) + 1

    mlp, x = Mlp(8, 16, 8), torch.randn(2, 3, 8)
    expected = mlp.fc2(gelu(mlp.fc1(x) + 1, approximate="tanh"))
    mlp.set_submodule("fc1", Adapted(mlp.fc1))
    torch.testing.assert_close(mlp(x), expected)


@needs_bfloat16
@pytest.mark.parametrize("num_keys", [50, 2500])  # some at once; pieces, the last one smaller
@pytest.mark.parametrize("tiles", [False, True])
@torch.no_grad()
def test_coarse_attention_is_nearly_the_fine_one(
    tiles: bool, num_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixsigma.models.attention.cpu_has", lambda name: tiles)
    torch.manual_seed(0)
    q = 3 * torch.randn(2, 3, 1100, 24)
    k, v = torch.randn(2, 2, 3, num_keys, 24).unbind(0)
    assert 0 < relative_error(coarse_attention(q, k, v), attention(q, k, v)) < 1e-2


@needs_bfloat16
@torch.no_grad()
def test_a_key_that_outweighs_all_that_were_looked_at_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pixsigma.models.attention.cpu_has", lambda name: False)
    q, k, v = torch.randn(3, 1, 1, 1100, 24).unbind(0)
    q, k[..., 501, :] = q.abs(), 900.0
    torch.testing.assert_close(
        coarse_attention(q, k, v), v[..., 501:502, :].expand_as(v), rtol=1e-2, atol=1e-2
    )
