"""Pictures of different sizes in one forward pass: the answers to each size alone."""

import pytest
import torch
from tests.small import KINDS, small_transformer
from torch import Tensor

from pixsigma.interfaces import Perturbation
from pixsigma.models.packed import Batch, forward_packed
from pixsigma.models.transformer import PixArtTransformer

CLOSE = 1e-5
SIZES = ((3, 8, 8), (2, 4, 12), (4, 8, 4), (1, 16, 8))


def batches(model: PixArtTransformer, how: Perturbation | None = None) -> list[Batch]:
    """Texts of one token, of several, with a mask, each for an equal part or its own share."""
    torch.manual_seed(3)
    width = model.config.caption_channels
    empty, short = model.read(torch.randn(1, 1, width)), model.read(torch.randn(1, 5, width))
    long = model.read(torch.randn(2, 9, width))
    masked = model.read(torch.randn(1, 7, width), torch.arange(7)[None] < 4)
    texts = [[empty, long], [masked, short], [empty, masked], [short]]
    found = []
    for k, ((num, *size), each) in enumerate(zip(SIZES, texts, strict=True)):
        x = torch.randn(num, 4, *size)
        t = torch.full((1,), 700.0) if k % 2 else torch.rand(num) * 999
        found.append(Batch(x, model.embed(t), each, how))
    return found


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "alpha"])
@pytest.mark.parametrize("variance", [True, False])
@torch.no_grad()
def test_each_size_is_answered_as_alone(kind: str, variance: bool) -> None:
    model = small_transformer(KINDS[kind])
    asked = batches(model)
    for batch, found in zip(asked, forward_packed(model, asked, variance), strict=True):
        alone = model(batch.x, batch.times, batch.texts, variance=variance)
        assert found.shape == alone.shape
        assert relative(found, alone) < CLOSE


@pytest.mark.parametrize("kind", ["identity", "blur"])
@torch.no_grad()
def test_disturbed_rows_are_those_of_each_size(kind: str) -> None:
    model = small_transformer()
    how = Perturbation(kind=kind, layers=(1,), num_rows=1)  # type: ignore[arg-type]
    asked = batches(model, how)[:3]
    for batch, found in zip(asked, forward_packed(model, asked), strict=True):
        alone = model(batch.x, batch.times, batch.texts, perturbation=how)
        assert relative(found, alone) < CLOSE
        calm = model(batch.x, batch.times, batch.texts)
        assert relative(found[-1], calm[-1]) > 10 * CLOSE
