"""The PixArt block: self-attention with adaptive norm, cross-attention to the text, MLP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from pixsigma.interfaces import Perturbation
from pixsigma.models.attention import attention, coarse_attention
from pixsigma.models.embeddings import Mlp
from pixsigma.models.perturbed import perturbed_attention
from pixsigma.models.products import Linear, is_coarse, multiplies_in_bfloat16


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm, then `· (1 + scale) + shift`: the adaptive norm of DiT; both (B or 1, 1, D).

    Where all rows share a time, as in a step of sampling, the norm takes them for its own weights.
    """
    if len(scale) == 1:
        return layer_norm(x, x.shape[-1:], (1 + scale).flatten(), shift.flatten(), eps=1e-6)
    return torch.addcmul(shift, layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def added(x: Tensor, update: Tensor, gate: Tensor | None = None) -> Tensor:
    """x + gate · update, written into `x` where no gradient asks for what it was."""
    if torch.is_grad_enabled():
        return x + update if gate is None else torch.addcmul(x, gate, update)
    return x.add_(update) if gate is None else x.addcmul_(gate, update)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, D) to (B, A, N, K)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, A, N, K) to (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention among image tokens, optionally with fewer keys and values.

    Compression (PixArt-Σ, section 3.3): one depth-wise convolution of stride `kv_ratio` and one
    layer norm, both shared by keys and values, as in the published code.
    """

    def __init__(self, width: int, num_heads: int, qk_norm: bool, kv_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_float32 = False
        """Whether training under autocast leaves this product alone."""
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        # Over the full width, before the heads part: the published qk-norm is not per head.
        self.q_norm = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.compressed = kv_ratio > 1
        if self.compressed:
            self.sr = nn.Conv2d(width, width, kv_ratio, stride=kv_ratio, groups=width)
            self.norm = nn.LayerNorm(width)

    def compress(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, D) to (B, N / ratio², D); an odd last row or column is left out."""
        squares = self.sr(tokens.transpose(1, 2).unflatten(2, grid))
        return self.norm(squares.flatten(2).transpose(1, 2))

    def forward(
        self, x: Tensor, grid: tuple[int, int], perturbation: Perturbation | None = None
    ) -> Tensor:
        """(B, N, D) to (B, N, D); `grid` is (rows, columns) of the tokens."""
        # what both products round anyway, and the attention between them, is handed on as it is
        both = multiplies_in_bfloat16(self.qkv) and multiplies_in_bfloat16(self.proj)
        rounded = both and self.coarse and not self.compressed and perturbation is None
        given = x.to(torch.bfloat16) if rounded else x
        y: Tensor = self.proj(self.mixed(*self.projected(given), grid, perturbation))
        return y.to(x.dtype) if rounded else y

    @property
    def coarse(self) -> bool:
        """Whether bf16 is enough: where queries, keys and values are no more exact."""
        return is_coarse(self.qkv) and not torch.is_grad_enabled()

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(…, D) to queries, keys and values (…, D) each: what a token gives by itself."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.q_norm(q), self.k_norm(k), v

    def mixed(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: tuple[int, int],
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        """(B, N, D) each to (B, N, D): what a token gets of the others of its picture."""
        if self.compressed:
            k, v = self.compress(k, grid), self.compress(v, grid)
        q, k, v = (split_heads(y, self.num_heads) for y in (q, k, v))
        if perturbation is not None:
            return merge_heads(perturbed_attention(q, k, v, grid, perturbation))
        if self.in_float32:
            with torch.autocast(q.device.type, enabled=False):
                return merge_heads(attention(q.float(), k.float(), v.float()).to(v.dtype))
        if self.coarse:
            return merge_heads(coarse_attention(q, k, v))
        return merge_heads(attention(q, k, v))


@dataclass
class Memo:
    """What a cross-attention last answered to a text, and whether that is to stay."""

    answer: Tensor | None = None
    keep: bool = False


class Beside(NamedTuple):
    """A picture's tokens as the cross-attention of one layer reads them beside a text."""

    keys: Tensor
    """(1 or B, A, K, D / A)"""
    values: Tensor
    weight: float
    """What its answer is multiplied by."""
    source: object
    """Whose tokens they are."""


class Words(NamedTuple):
    """Texts as the cross-attention of one layer reads them."""

    keys: Tensor
    """(B, A, L, K)"""
    values: Tensor
    """(B, A, L, K)"""
    mask: Tensor | None = None
    """(B, 1, 1, L) bool; None: every token counts."""
    memo: Memo | None = None
    pictures: tuple[Beside, ...] = ()
    """Of image prompts; not for what is gathered from several drawings."""

    @property
    def single(self) -> bool:
        """Whether there is one token, so that nothing has to be weighed."""
        return self.keys.shape[2] == 1 and self.mask is None and not self.pictures


def shares(num_rows: int, texts: Sequence[Words]) -> list[int]:
    """How many rows read each text: as many as it has where that is all, else equally many."""
    own = [len(words.keys) for words in texts]
    return own if sum(own) == num_rows else [num_rows // len(texts)] * len(texts)


class CrossAttention(nn.Module):
    """Attention from image tokens to text tokens; padding gets no weight."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = Linear(width, width)
        self.kv_linear = Linear(width, 2 * width)
        self.proj = Linear(width, width)

    def read(self, text: Tensor, mask: Tensor | None) -> Words:
        """text (B, L, D), mask (B, 1, 1, L) bool: what no step changes."""
        return self._words(self.kv_linear(text), mask)

    def read_packed(self, tokens: Tensor, places: Tensor, mask: Tensor) -> Words:
        """tokens (V, D) that stand at `places` (V,) of mask (B, L) bool; padding is 0."""
        projected = self.kv_linear(tokens)
        padded = projected.new_zeros(mask.numel(), projected.shape[1])
        padded = padded.index_copy(0, places, projected).unflatten(0, mask.shape)
        return self._words(padded, mask[:, None, None])

    def _words(self, projected: Tensor, mask: Tensor | None) -> Words:
        keys, values = projected.chunk(2, dim=-1)
        return Words(split_heads(keys, self.num_heads), split_heads(values, self.num_heads), mask)

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """x (B, N, D) to (B, N, D), or (B, 1, D) where every token of it gets the same.

        Rows of `words` may be fewer: each serves as many rows of `x`, one after the other.
        """
        memo = words.memo
        if memo is None:
            return self.answer(x, words)
        if not memo.keep or memo.answer is None:
            memo.answer = self.answer(x, words)
        return memo.answer

    def answer(self, x: Tensor, words: Words) -> Tensor:
        """The same, always computed."""
        if words.single:
            # the weight of an only token is 1 whatever the query: so it is with the empty prompt
            update, num = self.proj(merge_heads(words.values)), len(words.keys)
            return update if num == 1 else update.repeat_interleave(len(x) // num, dim=0)
        return self.proj(self.mixed(self.q_linear(x), words))

    def mixed(self, q: Tensor, words: Words) -> Tensor:
        """Queries (B, N, D) to what they get of the text, and of pictures beside it (B, N, D)."""
        found = self.answered(q, words.keys, words.values, words.mask)
        for keys, values, weight, _ in words.pictures:
            found = found + weight * self.answered(q, keys, values)
        return found

    def answered(
        self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Queries (B, N, D) of any multiple of the rows of keys and values, to (B, N, D)."""
        heads = split_heads(q.reshape(len(keys), -1, q.shape[2]), self.num_heads)
        return merge_heads(attention(heads, keys, values, mask)).view_as(q)


class Block(nn.Module):
    """One of the layers of the figure (PixArt-α, figure 4)."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool, kv_ratio: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.attn = SelfAttention(width, num_heads, qk_norm, kv_ratio)
        self.cross_attn = CrossAttention(width, num_heads)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(
        self,
        x: Tensor,
        t0: Tensor,
        texts: Sequence[Words],
        grid: tuple[int, int],
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        """x (B, N, D), t0 (B or 1, 6, D) shared by all blocks (adaLN-single), to (B, N, D).

        Each of `texts` is read by its share of the rows. Without gradients `x` is overwritten.
        """
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.modulation(t0)
        normed = modulated_norm(x, shift_attn, scale_attn)
        x = added(x, self.attn(normed, grid, perturbation), gate_attn)
        x = self.attend(x, texts)
        return added(x, self.mlp(modulated_norm(x, shift_mlp, scale_mlp)), gate_mlp)

    def modulation(self, t0: Tensor) -> tuple[Tensor, ...]:
        """(B or 1, 6, D) to shift, scale and gate of attention, then of the MLP: (B or 1, 1, D)."""
        return (self.scale_shift_table + t0).unsqueeze(2).unbind(1)

    def attend(self, x: Tensor, texts: Sequence[Words]) -> Tensor:
        """x + cross-attention, with neither norm nor gate: as published."""
        if len(texts) == 1:
            return added(x, self.cross_attn(x, texts[0]))
        parts = [
            added(part, self.cross_attn(part, words))
            for part, words in zip(x.split(shares(len(x), texts)), texts, strict=True)
        ]
        return torch.cat(parts) if torch.is_grad_enabled() else x
