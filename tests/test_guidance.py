"""Guidance: what the network sees, and what comes of its two halves."""

import pytest
import torch
from torch import Tensor

from pixsigma.diffusion.guidance import guided
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError
from pixsigma.interfaces import TextFeatures

LEVEL = NoiseSchedule().level_between(856.25)


class Recorder:
    """Answers with the sum of the unmasked text in every channel; remembers its inputs."""

    def __init__(self, channels: int = 8) -> None:
        self.channels = channels
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []

    def __call__(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        self.calls.append((x, t, text, mask))
        told = (text * mask[..., None]).sum(dim=(1, 2)).view(-1, 1, 1, 1)
        scale = torch.arange(1, self.channels + 1).view(1, -1, 1, 1)
        return (told * scale).expand(-1, -1, *x.shape[2:]).to(x.dtype)


def text(rows: int, length: int, value: float, dtype: torch.dtype = torch.float32) -> TextFeatures:
    values = value + torch.arange(rows, dtype=dtype).view(-1, 1, 1)
    return TextFeatures(
        values.expand(rows, length, 3).clone() / (3 * length),
        torch.ones(rows, length, dtype=torch.bool),
    )


X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
CHANNELS = torch.arange(1, 5).view(1, 4, 1, 1).float()


def test_one_batch_unconditional_first() -> None:
    network = Recorder()
    found = guided(network, text(2, 5, 3.0), text(2, 2, 1.0), 4.5)(X, LEVEL)
    ((x, t, told, mask),) = network.calls
    assert torch.equal(x, torch.cat([X, X]))
    assert t.dtype == torch.float32 and t.tolist() == [856.25] * 4
    assert told.shape == (4, 5, 3) and mask is not None
    assert mask.sum(dim=1).tolist() == [2, 2, 5, 5]
    # uncond 1 and 2, cond 3 and 4: both differ by 2
    expected = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1) + 4.5 * 2
    torch.testing.assert_close(found.eps, (expected * CHANNELS).expand_as(X))
    torch.testing.assert_close(LEVEL.add_noise(found.x0, found.eps), X)


def test_variance_is_the_conditional_one() -> None:
    found = guided(Recorder(), text(1, 3, 3.0), text(1, 3, 1.0), 4.5)(X, LEVEL)
    assert found.variance_fraction is not None
    torch.testing.assert_close(found.variance_fraction, (3 * (CHANNELS + 4)).expand_as(X))


def test_legacy_guidance_of_three_channels() -> None:
    found = guided(Recorder(), text(1, 3, 3.0), text(1, 3, 1.0), 4.5, channels=3)(X, LEVEL)
    torch.testing.assert_close(found.eps[:, :3], (10 * CHANNELS[:, :3]).expand_as(X[:, :3]))
    torch.testing.assert_close(found.eps[:, 3:], (3 * CHANNELS[:, 3:]).expand_as(X[:, 3:]))


@pytest.mark.parametrize("null", [None, text(2, 3, 1.0)])
def test_without_guidance_the_text_goes_alone(null: TextFeatures | None) -> None:
    network = Recorder(channels=4)
    scale = 4.5 if null is None else 1.0
    found = guided(network, text(2, 3, 3.0), null, scale)(X, LEVEL)
    assert network.calls[0][0].shape[0] == 2
    expected = torch.tensor([3.0, 4.0]).view(2, 1, 1, 1) * CHANNELS
    torch.testing.assert_close(found.eps, expected.expand_as(X))
    assert found.variance_fraction is None


def test_one_null_text_serves_all() -> None:
    network = Recorder()
    predict = guided(network, text(2, 3, 3.0), text(1, 2, 1.0), 2.0)
    predict(X, LEVEL)
    assert network.calls[0][2].shape[0] == 4


def test_padding_does_not_speak() -> None:
    """The conditional answer is the same beside a longer negative prompt."""
    short = guided(Recorder(), text(2, 3, 3.0), text(2, 3, 1.0), 2.0)(X, LEVEL)
    long = guided(Recorder(), text(2, 3, 3.0), text(2, 9, 1.0), 2.0)(X, LEVEL)
    torch.testing.assert_close(short.eps, long.eps)


def test_network_in_half_precision_state_in_full() -> None:
    network = Recorder()
    half = torch.bfloat16
    found = guided(network, text(1, 3, 3.0, half), text(1, 3, 1.0, half), 2.0)(X, LEVEL)
    assert network.calls[0][0].dtype == half and network.calls[0][1].dtype == torch.float32
    assert found.eps.dtype == found.x0.dtype == torch.float32


def test_rows_must_fit_the_pictures() -> None:
    with pytest.raises(InputError, match="got 3 rows for 2 pictures"):
        guided(Recorder(), text(3, 3, 3.0), text(1, 3, 1.0), 2.0)(X, LEVEL)
    with pytest.raises(InputError, match="one row of text a picture"):
        guided(Recorder(), text(2, 3, 3.0), text(3, 3, 1.0), 2.0)


def test_v_prediction() -> None:
    found = guided(
        Recorder(channels=4), text(1, 3, 1.0), None, 1.0, prediction_type="v_prediction"
    )(X, LEVEL)
    v = LEVEL.alpha * found.eps - LEVEL.sigma * found.x0
    torch.testing.assert_close(v, CHANNELS.expand_as(X), rtol=1e-4, atol=1e-5)
