"""The autoencoder by itself: scaling, sizes, slices and tiles."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pixsigma.config import AutoencoderConfig
from pixsigma.errors import InputError, SizeError
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.tiling import (
    TiledAutoencoder,
    decode_sliced,
    decode_tiled,
    encode_sliced,
    encode_tiled,
)

CONFIG = AutoencoderConfig(
    block_out_channels=(8, 8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    scaling_factor=0.4,
    shift_factor=0.2,
    sample_size=32,
)


def autoencoder(config: AutoencoderConfig = CONFIG) -> KLAutoencoder:
    torch.manual_seed(0)
    return KLAutoencoder(config).eval().requires_grad_(False)


def pictures(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latents(*size: int) -> Tensor:
    return torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(2))


class Positions(KLAutoencoder):
    """Stands in for a network: repeats or averages places, so tiles can be checked by hand."""

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, self.config.factor)

    def decode(self, latents: Tensor) -> Tensor:
        factor = self.config.factor
        return latents.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (4, 8)])
def test_latents_are_a_factor_smaller_and_come_back_to_size(size: tuple[int, int]) -> None:
    model = autoencoder()
    encoded = model.encode(pictures(*size))
    assert encoded.shape == (2, 4, size[0] // 4, size[1] // 4)
    assert model.decode(encoded).shape == (2, 3, *size)


def test_latents_are_the_shifted_and_scaled_mean() -> None:
    model = autoencoder()
    mean, std = model.moments(pictures(32, 32))
    assert mean.shape == std.shape == (2, 4, 8, 8)
    assert (std > 0).all()
    torch.testing.assert_close(model.encode(pictures(32, 32)), (mean - 0.2) * 0.4)


def test_decoding_undoes_shift_and_scale() -> None:
    plain = autoencoder(replace(CONFIG, scaling_factor=1.0, shift_factor=None))
    z = latents(8, 8)
    torch.testing.assert_close(autoencoder().decode((z - 0.2) * 0.4), plain.decode(z))


@pytest.mark.parametrize(("bias", "expected"), [(1000.0, 10.0), (-1000.0, -15.0)])
def test_log_variance_is_clamped(bias: float, expected: float) -> None:
    model = autoencoder()
    assert model.quant_conv is not None and model.quant_conv.bias is not None
    model.quant_conv.bias[4:] = bias
    _, std = model.moments(pictures(32, 32))
    torch.testing.assert_close(std.log(), torch.full_like(std, expected))


def test_a_side_that_is_no_multiple_is_refused_by_name() -> None:
    with pytest.raises(SizeError, match="multiples of 4, got 34x32"):
        autoencoder().encode(pictures(32, 34))


def test_inputs_are_cast_to_the_weights() -> None:
    model = autoencoder().to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.decode(model.encode(pictures(32, 32)).float()).dtype == torch.bfloat16


def test_init_weights_draws_all_anew() -> None:
    model, other = autoencoder(), autoencoder()
    torch.nn.init.constant_(other.encoder.conv_in.weight, 7.0)
    torch.manual_seed(0)
    model.init_weights()
    torch.manual_seed(0)
    other.init_weights()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name)


def test_running_leaves_weights_and_inputs_alone() -> None:
    model, images, z = autoencoder(), pictures(32, 32), latents(12, 20)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.encode(images)
    decode_tiled(model, z)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(images, pictures(32, 32)) and torch.equal(z, latents(12, 20))


def test_gradients_reach_every_weight() -> None:
    model = autoencoder().requires_grad_(True)
    mean, std = model.moments(pictures(16, 16))
    model.decode(mean + std * torch.randn_like(std)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_slices_equal_the_whole() -> None:
    model, images, z = autoencoder(), pictures(32, 24), latents(8, 6)
    torch.testing.assert_close(encode_sliced(model, images), model.encode(images))
    torch.testing.assert_close(decode_sliced(model, z), model.decode(z))


@pytest.mark.parametrize("size", [(12, 20), (8, 9), (16, 8), (13, 13)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles_of_a_local_network_show_no_seams(size: tuple[int, int], overlap: float) -> None:
    model = Positions(CONFIG)
    z = latents(*size)
    torch.testing.assert_close(decode_tiled(model, z, overlap=overlap), model.decode(z))
    images = pictures(size[0] * 4, size[1] * 4)
    torch.testing.assert_close(encode_tiled(model, images, overlap=overlap), model.encode(images))


def test_what_fits_a_tile_is_done_whole() -> None:
    model, z = autoencoder(), latents(8, 8)
    torch.testing.assert_close(decode_tiled(model, z), model.decode(z))
    assert not torch.allclose(decode_tiled(model, z, tile=16), model.decode(z))
    torch.testing.assert_close(
        encode_tiled(model, pictures(32, 32)), model.encode(pictures(32, 32))
    )


def test_tiles_meet_without_steps() -> None:
    """Fading: where two tiles disagree by a constant, the picture changes little by little."""

    class Disagreeing(Positions):
        calls = 0

        def decode(self, latents: Tensor) -> Tensor:
            self.calls += 1
            return super().decode(torch.full_like(latents, float(self.calls)))

    row = decode_tiled(Disagreeing(CONFIG), latents(8, 14), tile=32, overlap=0.25)[0, 0, 0]
    steps = row.diff()
    assert steps.min() >= 0 and steps.max() <= 1 / 8 + 1e-6


@pytest.mark.parametrize("run", [decode_tiled, encode_tiled])
@pytest.mark.parametrize(("tile", "overlap"), [(2, 0.25), (32, 1.0), (32, -0.1), (4, 0.5)])
def test_tiles_that_cannot_be_are_refused(
    run: Callable[..., Tensor], tile: int, overlap: float
) -> None:
    with pytest.raises(InputError, match=f"a tile of {tile} and an overlap of {overlap}"):
        run(autoencoder(), latents(16, 16), tile=tile, overlap=overlap)


def test_the_wrapper_takes_pictures_one_by_one_in_tiles() -> None:
    model = autoencoder()
    small = TiledAutoencoder(model, tile=16)
    z, images = latents(12, 6), pictures(24, 40)
    torch.testing.assert_close(small.decode(z), decode_tiled(model, z, tile=16))
    torch.testing.assert_close(small.encode(images), encode_tiled(model, images, tile=16))
