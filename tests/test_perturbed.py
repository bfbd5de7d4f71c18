"""Disturbed self-attention: what becomes of its rows, and of the others."""

import math

import pytest
import torch
from tests.small import KINDS, SIGMA, small_transformer

from pixsigma.errors import InputError
from pixsigma.interfaces import Perturbation
from pixsigma.models.perturbed import blur_matrix, blurred, perturbed_attention

IDENTITY = Perturbation(kind="identity", layers=(1,), num_rows=1)
BLUR = Perturbation(kind="blur", layers=(0, 1), num_rows=2, blur=0.8)


def inputs(rows: int = 3) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 4, 8, 12, generator=g)
    return x, torch.full((rows,), 500.0), torch.randn(rows, 5, 16, generator=g)


@pytest.mark.parametrize("how", [IDENTITY, BLUR], ids=["identity", "blur"])
@torch.no_grad()
def test_only_the_last_rows_change(how: Perturbation) -> None:
    model, given = small_transformer(), inputs()
    plain, disturbed = model(*given), model(*given, perturbation=how)
    kept = 3 - how.num_rows
    torch.testing.assert_close(plain[:kept], disturbed[:kept])
    for row in range(kept, 3):
        assert not torch.allclose(plain[row], disturbed[row], atol=1e-3)


@torch.no_grad()
def test_layers_that_are_not_named_stay() -> None:
    model, given = small_transformer(), inputs()
    nowhere = Perturbation(kind="identity", layers=(7,), num_rows=1)
    assert torch.equal(model(*given), model(*given, perturbation=nowhere))


@torch.no_grad()
def test_it_compiles_whole_and_again_for_other_layers() -> None:
    model, given = small_transformer(), inputs()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for how in (None, IDENTITY, BLUR, IDENTITY):
        expected = model(*given, perturbation=how)
        torch.testing.assert_close(compiled(*given, perturbation=how), expected)


def test_identity_gives_every_token_its_value() -> None:
    q, k, v = torch.randn(3, 2, 2, 6, 4)
    found = perturbed_attention(q, k, v, (2, 3), IDENTITY)
    assert torch.equal(found[1:], v[1:])


def test_identity_is_refused_where_values_are_fewer() -> None:
    model = small_transformer(KINDS["compressed"])
    with pytest.raises(InputError, match="name other layers, or take SEG"):
        model(*inputs(), perturbation=IDENTITY)
    model(*inputs(), perturbation=BLUR)


def test_blur_is_a_gaussian_over_the_picture() -> None:
    """Far from the edges: the weights of a Gaussian, in both directions."""
    sigma, q = 0.7, torch.zeros(1, 1, 99, 1)
    q[0, 0, 4 * 11 + 5] = 1.0
    found = blurred(q, (9, 11), sigma).view(9, 11)
    weight = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-2, 3)]
    line = torch.tensor(weight) / sum(weight)
    torch.testing.assert_close(found[2:7, 3:8], torch.outer(line, line))
    assert float(found.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("sigma", [0.3, 2.0, 50.0])
def test_edges_are_mirrored(n: int, sigma: float) -> None:
    matrix = blur_matrix(n, sigma)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(n))
    reach = math.ceil(6 * sigma) // 2
    if 0 < reach < n:
        line = torch.randn(1, 1, n)
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        padded = torch.nn.functional.pad(line, (reach, reach), mode="reflect")
        expected = torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])
        torch.testing.assert_close(matrix @ line[0, 0], expected[0, 0])


def test_blur_without_end_is_the_mean() -> None:
    q = torch.randn(2, 3, 12, 4)
    found = blurred(q, (3, 4), None)
    torch.testing.assert_close(found, q.mean(dim=2, keepdim=True).expand_as(q))
    assert SIGMA.num_layers == 2
