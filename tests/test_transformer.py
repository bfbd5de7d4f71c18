"""The transformer against formulas written out by hand, one number at a time."""

import math

import pytest
import torch
from torch.nn.functional import gelu, scaled_dot_product_attention

from pixsigma.config import KVCompression, TransformerConfig
from pixsigma.errors import InputError
from pixsigma.models.blocks import SelfAttention
from pixsigma.models.embeddings import ScalarEmbedder, positions_2d
from pixsigma.models.transformer import PixArtTransformer


def small(**changes: object) -> TransformerConfig:
    values = {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "caption_channels": 16,
        "sample_size": 8,
        "interpolation_scale": 0.5,
    }
    return TransformerConfig(**(values | changes))  # type: ignore[arg-type]


def random_model(config: TransformerConfig, seed: int = 0) -> PixArtTransformer:
    torch.manual_seed(seed)
    model = PixArtTransformer(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def test_xl_2_has_the_published_size() -> None:
    with torch.device("meta"):
        model = PixArtTransformer(TransformerConfig())
    assert sum(p.numel() for p in model.parameters()) == 610_856_096
    assert len(model.state_dict()) == 435


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"kv_compression": KVCompression(layers=tuple(range(14, 28)))}, 112_896),
        ({"qk_norm": True}, 129_024),
        ({"use_additional_conditions": True}, 493_056),
    ],
)
def test_options_add_the_published_number_of_parameters(
    changes: dict[str, object], added: int
) -> None:
    with torch.device("meta"):
        model = PixArtTransformer(TransformerConfig(**changes))  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters()) == 610_856_096 + added


def test_positions_put_the_column_first_and_span_the_same_square() -> None:
    h, w, width, extent = 3, 5, 16, 32.0
    table = positions_2d(h, w, width, extent, torch.device("cpu")).view(h, w, width)
    for row in range(h):
        for column in range(w):
            for k in range(width // 4):
                omega = 10000 ** (-k / (width // 4))
                x, y = column * extent / w, row * extent / h
                expected = [f(v * omega) for v in (x, y) for f in (math.sin, math.cos)]
                got = [table[row, column, k + part * (width // 4)].item() for part in range(4)]
                assert got == pytest.approx(expected, abs=2e-6)


def test_time_embedding_puts_cosines_first_and_keeps_float32_frequencies() -> None:
    embedder = ScalarEmbedder(8)
    seen: list[torch.Tensor] = []
    embedder.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embedder(torch.tensor([927.643]))
    assert seen[0][0, 0].item() == pytest.approx(math.cos(927.643), abs=1e-4)
    assert seen[0][0, 128].item() == pytest.approx(math.sin(927.643), abs=1e-4)
    assert seen[0][0, 129].item() == pytest.approx(
        math.sin(927.643 * math.exp(-math.log(10000) / 128)), abs=1e-4
    )


@pytest.mark.parametrize("grid", [(4, 6), (5, 7)])
def test_compression_is_a_shared_average_and_norm(grid: tuple[int, int]) -> None:
    """K and V of a fresh model are LN(mean of each 2 × 2 square); odd edges are left out."""
    h, w = grid
    torch.manual_seed(0)
    attention = SelfAttention(16, 2, qk_norm=False, kv_ratio=2)
    torch.nn.init.constant_(attention.sr.weight, 1 / 4)
    torch.nn.init.zeros_(attention.sr.bias)
    x = torch.randn(2, h * w, 16)
    q, k, v = (part.view(2, h, w, 16) for part in attention.qkv(x).split(16, dim=-1))
    small_grid = []
    for tokens in (k, v):
        squares = [
            tokens[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(dim=(1, 2))
            for i in range(h // 2)
            for j in range(w // 2)
        ]
        averaged = torch.stack(squares, dim=1)
        centred = averaged - averaged.mean(-1, keepdim=True)
        small_grid.append(centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())
    heads = [y.reshape(2, -1, 2, 8).transpose(1, 2) for y in (q, *small_grid)]
    scores = torch.softmax(heads[0] @ heads[1].mT / math.sqrt(8), dim=-1) @ heads[2]
    expected = attention.proj(scores.transpose(1, 2).reshape(2, h * w, 16))
    torch.testing.assert_close(attention(x, grid), expected, rtol=1e-5, atol=1e-6)


def test_one_block_is_the_published_formula() -> None:
    model = random_model(small(num_layers=1))
    block = model.blocks[0]
    x, text = torch.randn(2, 6, 48), torch.randn(2, 5, 48)
    t0 = torch.randn(2, 6, 48)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        (block.scale_shift_table[i] + t0[:, i])[:, None] for i in range(6)
    )

    def norm(y: torch.Tensor) -> torch.Tensor:
        centred = y - y.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def heads(y: torch.Tensor) -> torch.Tensor:
        return y.view(2, -1, 2, 24).transpose(1, 2)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        y = scaled_dot_product_attention(heads(q), heads(k), heads(v))
        return y.transpose(1, 2).reshape(2, -1, 48)

    y = x + gate1 * block.attn.proj(
        attend(*block.attn.qkv(norm(x) * (1 + scale1) + shift1).split(48, dim=-1))
    )
    rows = []
    for b in range(2):  # each row attends to its own tokens only, as the packed published code
        words = text[b : b + 1, mask[b]]
        k, v = block.cross_attn.kv_linear(words).split(48, dim=-1)
        q = block.cross_attn.q_linear(y[b : b + 1])
        q, k, v = (z.view(1, -1, 2, 24).transpose(1, 2) for z in (q, k, v))
        rows.append(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, -1, 48))
    y = y + block.cross_attn.proj(torch.cat(rows))
    hidden = gelu(block.mlp.fc1(norm(y) * (1 + scale2) + shift2), approximate="tanh")
    y = y + gate2 * block.mlp.fc2(hidden)
    words = block.cross_attn.read(text, mask[:, None, None])
    got = block(x, t0, [words], (2, 3))
    torch.testing.assert_close(got, y, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours_or_on_padding() -> None:
    model = random_model(small())
    x, t = torch.randn(3, 4, 6, 8), torch.tensor([3.0, 500.5, 998.0])
    text = torch.randn(3, 7, 16)
    mask = torch.arange(7) < torch.tensor([[2], [7], [4]])
    together = model(x, t, text, mask)
    for b, length in enumerate((2, 7, 4)):
        alone = model(x[b : b + 1], t[b : b + 1], text[b : b + 1, :length])
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-5, atol=1e-5)


def test_fresh_weights_predict_zero_and_average_when_compressing() -> None:
    model = PixArtTransformer(small(kv_compression=KVCompression(layers=(1,))))
    model.init_weights()
    out = model(torch.randn(1, 4, 8, 8), torch.tensor([10.0]), torch.randn(1, 3, 16))
    assert out.abs().max() == 0
    assert (model.blocks[1].attn.sr.weight == 0.25).all()
    assert not hasattr(model.blocks[0].attn, "sr")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_head_dim": 23, "num_attention_heads": 1}, "divisible by 4"),
        ({"sample_size": 9}, "multiple of patch_size"),
        ({"kv_compression": KVCompression(layers=(2,))}, "names layers"),
        ({"use_additional_conditions": True, "attention_head_dim": 20}, "divisible by 3"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        small(**changes)


def test_compiles_whole_for_every_shape_of_a_kind() -> None:
    model = random_model(small())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for h, w in ((8, 8), (4, 6)):
        x, t, text = torch.randn(2, 4, h, w), torch.tensor([5.0, 6.0]), torch.randn(2, 4, 16)
        mask = torch.ones(2, 4)
        torch.testing.assert_close(compiled(x, t, text, mask), model(x, t, text, mask))


def test_training_reads_the_same_words() -> None:
    # with gradients only the tokens that count are projected
    model = random_model(small())
    x, text = torch.randn(3, 4, 8, 8), torch.randn(3, 6, 16)
    mask = torch.arange(6) < torch.tensor([[1], [4], [6]])
    t = torch.tensor([10.0, 500.0, 900.0])
    with torch.no_grad():
        expected = model(x, t, text, mask)
    torch.testing.assert_close(model(x, t, text, mask), expected, rtol=1e-5, atol=1e-6)
