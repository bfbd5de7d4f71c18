"""ControlNet-Transformer: nothing at first, and then what its formula says."""

from dataclasses import replace

import pytest
import torch
from tests.small import SIGMA, small_transformer
from torch import Tensor

from pixsigma import InputError
from pixsigma.models.controlled import Control, Controlled
from pixsigma.models.controlnet import ControlNet
from pixsigma.models.transformer import PixArtTransformer

LAYERS = replace(SIGMA, num_layers=4)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    return torch.randn(2, 4, 8, 6), torch.randn(2, 5, 16), mask, torch.randn(1, 4, 8, 6)


def asked(base: PixArtTransformer, *controls: Control, t: float = 500.0) -> Tensor:
    x, text, mask, _ = inputs()
    network = Controlled(base, controls)
    return network(x, network.embed(torch.tensor([t])), [network.read(text, mask)])


def woken(base: PixArtTransformer, seed: int = 5) -> ControlNet:
    """With links that are no longer zero."""
    net = ControlNet.copy_of(base)
    torch.manual_seed(seed)
    for name, weight in net.named_parameters():
        if "_proj." in name and "copied" not in name:
            torch.nn.init.normal_(weight, std=0.05)
    return net


@torch.no_grad()
def test_a_fresh_copy_changes_no_bit() -> None:
    base = small_transformer(LAYERS)
    x, text, mask, hint = inputs()
    plain = base(x, torch.tensor([500.0]), text, mask)
    assert torch.equal(asked(base), plain)
    assert torch.equal(asked(base, Control(ControlNet.copy_of(base), hint)), plain)


@torch.no_grad()
def test_it_is_the_published_forward() -> None:
    """The authors' interleaved loop, written out."""
    base, (x, text, mask, hint) = small_transformer(LAYERS), inputs()
    net = woken(base)
    grid = 4, 3
    times, words = base.embed(torch.tensor([500.0])), base.read(text, mask)
    embedded = base.y_embedder(text)
    own = net.read(embedded, mask[:, None, None])
    h = base.x_embedder(x) + base.positions(*grid, x.device)
    c = (base.x_embedder(hint) + base.positions(*grid, x.device)).repeat(2, 1, 1)
    h = base.blocks[0](h, times.t0, [words[0]], grid)
    for i in range(1, 4):
        if i <= 2:
            block = net.controlnet[i - 1]
            if i == 1:
                c = h + block.before_proj(c)
            c = block.copied_block(c.clone(), times.t0, [own[i - 1]], grid)
            h = h + block.after_proj(c)
        h = base.blocks[i](h, times.t0, [words[i]], grid)
    expected = base.unpatchify(base.final_layer(h, times.t), grid)
    torch.testing.assert_close(asked(base, Control(net, hint)), expected)


@torch.no_grad()
def test_weights_and_ranges() -> None:
    base, hint = small_transformer(LAYERS), inputs()[3]
    net, other = woken(base), woken(base, seed=6)
    plain, full = asked(base), asked(base, Control(net, hint))
    assert not torch.allclose(plain, full)
    assert torch.equal(asked(base, Control(net, hint, weight=0.0)), plain)
    halves = asked(base, Control(net, hint, weight=0.5), Control(net, hint, weight=0.5))
    torch.testing.assert_close(halves, full)
    both = asked(base, Control(net, hint), Control(other, hint))
    assert not torch.allclose(both, full)
    late = Control(net, hint, begins=300.0)
    assert torch.equal(asked(base, late), plain)
    torch.testing.assert_close(asked(base, late, t=300.0), asked(base, Control(net, hint), t=300.0))
    assert torch.equal(asked(base, Control(net, hint, ends=500.0)), plain)


def test_only_the_copy_learns() -> None:
    base, hint = small_transformer(LAYERS).requires_grad_(False), inputs()[3]
    net = ControlNet.copy_of(base).requires_grad_(True)
    asked(base, Control(net, hint)).square().mean().backward()
    assert all(weight.grad is None for weight in base.parameters())
    links = [net.controlnet[i].after_proj.weight.grad for i in range(2)]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in links)


def test_names_are_those_of_the_published_file() -> None:
    keys = set(ControlNet(LAYERS).state_dict())
    assert "controlnet.0.before_proj.weight" in keys
    assert "controlnet.1.after_proj.bias" in keys
    assert "controlnet.1.copied_block.attn.qkv.weight" in keys
    assert "controlnet.1.before_proj.weight" not in keys


@pytest.mark.parametrize("num", [0, 4])
def test_a_copy_needs_blocks_behind_it(num: int) -> None:
    with pytest.raises(InputError, match="1 to 3"):
        ControlNet(LAYERS, num)
