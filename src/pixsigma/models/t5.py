"""The encoder of T5 v1.1 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683; Shazeer 2020,
https://arxiv.org/abs/2002.05202 for the gated feed-forward): token ids to one vector a token.

Letters as in `pixsigma.shapes`: B prompts, L tokens, E = d_model, A heads, K = d_kv; F = d_ff.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixsigma.config import T5Config


class T5Encoder(nn.Module):
    """The whole encoder: embed, blocks that share one position bias, last norm."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.embed = WordTable(config.vocab_size, config.d_model)
        self.position_bias = PositionBias(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, L, E) for `ids` (B, L) and `mask` (B, L), true where there is a token.

        Rows of padding are computed and mean nothing; without a mask every token counts.
        """
        bias = self.position_bias(ids.shape[1])
        if mask is not None:
            # The lowest finite number: with -inf a row without any token would become NaN.
            lowest = torch.finfo(bias.dtype).min
            bias = bias.masked_fill(~mask.bool()[:, None, None, :], lowest)
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, bias)
        out: Tensor = self.final_norm(x)
        return out

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.position_bias.weight.device

    @staticmethod
    def storage_dtype(key: str, dtype: torch.dtype) -> torch.dtype:
        """The type that the parameter `key` is kept in where the encoder runs in `dtype`.

        `load_state_dict(assign=True)` keeps the type of what it is given, so a loader asks here;
        `.to()` and `.half()` need no asking.
        """
        if dtype is torch.float16 and key.endswith(".mlp.wo.weight"):
            return torch.float32
        return dtype


class WordTable(nn.Embedding):
    """One vector a token, drawn from N(0, 1) where there is memory for it."""

    def reset_parameters(self) -> None:
        """As torch does; on the device `meta` torch would import its whole compiler for it."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Block(nn.Module):
    """Attention, then feed-forward, each normed before and added to the stream."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, L, E) and the bias (1 or B, A, L, L) to (B, L, E)."""
        x = x + self.attn(self.attn_norm(x), bias)
        # Under fp16 the feed-forward answers in fp32, and from the first block on so does the
        # stream: its values pass 65504 in the XXL weights.
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Attention(nn.Module):
    """Self-attention whose scores are not divided by sqrt(K): T5 folds that into its weights."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = config.num_heads * config.d_kv
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, L, E) and the bias (1 or B, A, L, L) to (B, L, E)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, A, L, K)
            for layer in (self.q, self.k, self.v)
        )
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        out: Tensor = self.o(y.transpose(1, 2).flatten(2))
        return out


class GatedMLP(nn.Module):
    """GEGLU: wo(gelu(wi_0 x) * wi_1 x), the gelu by its tanh approximation."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = NeverHalfLinear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) to (B, L, E), in the type of `wo`."""
        dtype = self.wo.weight.dtype
        gate = functional.gelu(self.wi_0(x), approximate="tanh").to(dtype)
        out: Tensor = self.wo(gate * self.wi_1(x).to(dtype))
        return out


class NeverHalfLinear(nn.Linear):
    """A linear layer that stays in fp32 when its model is cast to fp16; other types pass.

    The products of T5's feed-forward overflow fp16 and the embeddings come out wrong without any
    error, so a `.half()` on a model around the encoder must not reach this layer.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NeverHalfLinear":
        def keep_fp32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype is not torch.float16:
                return moved
            return tensor.to(moved.device, torch.float32)

        super()._apply(keep_fp32, recurse)  # type: ignore[no-untyped-call]
        return self


class RMSNorm(nn.Module):
    """Divide by the root of the mean square over E, in fp32; no mean is taken off, no bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) to (..., E), in the type of the weight."""
        wide = x.float()
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(self.weight.dtype)


class PositionBias(nn.Module):
    """One learned number a head for each bucket of distance between key and query."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.weight = nn.Parameter(torch.zeros(self.num_buckets, config.num_heads))

    def forward(self, length: int) -> Tensor:
        """Return (1, A, L, L), rows queries, columns keys."""
        place = torch.arange(length, device=self.weight.device)
        buckets = distance_bucket(place[None] - place[:, None], self.num_buckets, self.max_distance)
        return self.weight[buckets].permute(2, 0, 1)[None]


def distance_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Buckets, int64, of signed distances key - query of any shape.

    Keys before the query take the first half of the buckets, keys after it the second. In a half,
    the first half of the buckets is one a distance, the rest are logarithmic up to `max_distance`.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distance.abs()
    log_place = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (log_place * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(size < exact, size, far) + half * (distance > 0)
