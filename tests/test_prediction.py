"""What a network predicts, in every parameterisation, is the same picture and the same noise."""

import pytest
import torch

from pixsigma.diffusion.prediction import from_x0, predicted
from pixsigma.diffusion.schedule import Level, NoiseSchedule
from pixsigma.errors import UnknownNameError

LEVEL = NoiseSchedule().level(400)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    x0, eps = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return x0, eps


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_x0_and_eps_come_back(kind: str, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, eps = pair
    v = LEVEL.alpha * eps - LEVEL.sigma * x0
    output = {"epsilon": eps, "sample": x0, "v_prediction": v}[kind]
    found = predicted(output, LEVEL.add_noise(x0, eps), LEVEL, kind)
    torch.testing.assert_close(found.x0, x0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.eps, eps, rtol=1e-4, atol=1e-5)
    assert found.variance_fraction is None


def test_second_half_is_the_variance(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, eps = pair
    fraction = torch.tanh(x0)
    found = predicted(torch.cat([eps, fraction], dim=1), LEVEL.add_noise(x0, eps), LEVEL, "epsilon")
    assert found.variance_fraction is not None
    assert torch.equal(found.variance_fraction, fraction)
    torch.testing.assert_close(found.x0, x0, rtol=1e-4, atol=1e-5)


def test_half_precision_output_is_promoted(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, eps = pair
    assert predicted(eps.bfloat16(), x, LEVEL, "epsilon").x0.dtype == torch.float32


def test_from_x0_is_the_inverse(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, eps = pair
    found = from_x0(x0, LEVEL.add_noise(x0, eps), LEVEL)
    torch.testing.assert_close(found.eps, eps, rtol=1e-4, atol=1e-5)
    assert torch.equal(from_x0(x0, x0, Level(0.0, 1.0, 0.0)).eps, torch.zeros_like(x0))


def test_unknown_kind(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(UnknownNameError, match="got 'flow'"):
        predicted(pair[0], pair[1], LEVEL, "flow")
