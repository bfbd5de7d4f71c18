"""Softmax attention, by whichever of two exact ways is the quicker."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from pixsigma.models.products import cpu_has

WRITTEN_OUT = {torch.bfloat16: 2**16, torch.float32: 2**12}
"""Most pairs of query and key, by number type, up to which training on a CPU writes them out."""


PIECE = 1024
"""Queries and keys whose weights in bf16 a cache holds."""
EVERY = 16
"""Of so many keys one is looked at for the greatest weight."""
LARGEST = 2.0**100
"""A sum of weights that leaves room for values."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q (B, A, N, K), k and v (B, A, L, K), mask (B, 1, 1, L) bool, to (B, A, N, K).

    The fused kernel never holds N x L numbers, but its backward pass on CPUs is several times
    slower than products of small matrices (eightfold at 16 x 16 in bf16).
    """
    small = q.shape[2] * k.shape[2] <= WRITTEN_OUT.get(q.dtype, 0)
    if torch.is_grad_enabled() and q.device.type == "cpu" and small:
        return _written_out(q, k, v, mask)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


def coarse_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same in bf16 products, for CPUs that have them.

    Where those are of tiles (AMX), and for few keys, the fused kernel is the quicker. Elsewhere it
    gains nothing for many, and pieces of products do.
    """
    if not cpu_has("amx_tile") and k.shape[2] >= PIECE:
        return _by_pieces(q, k, v)
    rounded = [x.to(torch.bfloat16) for x in (q, k, v)]
    return scaled_dot_product_attention(rounded[0], rounded[1], rounded[2]).to(q.dtype)


def _by_pieces(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Head by head, a piece of the queries at a time.

    Values lie transposed: oneDNN's product of few rows is half again as quick as that of few
    columns.
    """
    size, num = q.shape[-1], q.shape[2]
    scaled = (q * (size**-0.5 * math.log2(math.e))).to(torch.bfloat16)
    queries = pad(scaled, (0, 2)).flatten(0, 1)  # an even number, as bf16 wants
    keys = pad(k.to(torch.bfloat16), (0, 2), value=1.0).flatten(0, 1)
    values = pad(v.to(torch.bfloat16), (0, 1), value=1.0).mT.contiguous().flatten(0, 1)
    y = q.new_empty(len(values), size, num)
    for head in range(len(y)):
        parts = queries[head].split(PIECE), y[head].split(PIECE, dim=1)
        for part, answer in zip(*parts, strict=True):
            answer.copy_(_weighted(part, keys[head], values[head]))
    return y.mT.unflatten(0, q.shape[:2])


def _weighted(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(N, K and 0, 0), (L, K and 1, 1), (K and 1, L) to the means of values (K, N), in float32.

    Softmax as sums of 2^(score - top), which no pass but the power has to look at: `top` is
    subtracted by the product, (q, -top)·(k, 1), before scores are rounded, so that the greatest
    are the most exact, and weights are summed by the product too, as a value that is 1. The
    greatest score of some keys will do for `top`, unless another is so much greater that its power
    overflows.
    """
    pieces = list(zip(keys.split(PIECE), values.split(PIECE, dim=1), strict=True))
    for looked_at in (keys[::EVERY], keys):
        queries[:, -2] = 0
        queries[:, -2] = -torch.mm(queries, looked_at.mT).amax(dim=-1)
        sums = torch.zeros(len(values), len(queries))
        for some_keys, some_values in pieces:
            sums += torch.mm(some_values, torch.mm(queries, some_keys.mT).exp2_().mT)
        if sums[-1].max() < LARGEST:
            break
    return sums[:-1] / sums[-1]


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    num, num_heads, size = len(q), q.shape[1], q.shape[-1]
    heads = [x.flatten(0, 1) for x in (q, k, v)]
    bias = q.new_zeros(1, 1, 1)
    if mask is not None:
        # the least number rather than -inf: a text without tokens gives no NaN
        hidden = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
        bias = hidden.expand(num, num_heads, 1, -1).flatten(0, 1)
    scores = torch.baddbmm(bias, heads[0], heads[1].mT, alpha=size**-0.5)
    y = torch.bmm(scores.softmax(dim=-1), heads[2]).unflatten(0, (num, -1))
    # but 0, as the kernel gives
    return y if mask is None else y * mask.any(dim=-1, keepdim=True)
