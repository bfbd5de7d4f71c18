"""Softmax attention, by whichever of two exact ways is the quicker."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pixsigma.models.products import cpu_has

WRITTEN_OUT = {torch.bfloat16: 2**16, torch.float32: 2**12}
"""Most pairs of query and key, by number type, up to which training on a CPU writes them out."""


FEWEST, MOST, WEIGHTS = 128, 1024, 2**20
"""Queries that `coarse_attention` takes at a time, and weights of theirs that a cache holds."""


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

    Where those are of tiles (AMX) the fused kernel is nearly three times as quick. Elsewhere it
    gains nothing: it is head by head and some queries at a time, so that what is between the
    products stays in a cache.
    """
    if cpu_has("amx_tile"):
        rounded = [x.to(torch.bfloat16) for x in (q, k, v)]
        return scaled_dot_product_attention(rounded[0], rounded[1], rounded[2]).to(q.dtype)
    scaled = (q * q.shape[-1] ** -0.5).to(torch.bfloat16).flatten(0, 1)
    keys = k.to(torch.bfloat16).flatten(0, 1)
    # values and answers lie transposed: oneDNN's product of so few rows is half again as quick as
    # that of so few columns
    values = v.mT.to(torch.bfloat16, memory_format=torch.contiguous_format).flatten(0, 1)
    y = values.new_empty(len(values), values.shape[1], scaled.shape[1])
    num = max(FEWEST, min(MOST, WEIGHTS // keys.shape[1]))
    for head, keys_of, values_of in zip(range(len(y)), keys.mT, values, strict=True):
        for begin in range(0, scaled.shape[1], num):
            part = slice(begin, begin + num)
            weights = torch.mm(scaled[head, part], keys_of).softmax(dim=-1)
            y[head, :, part] = torch.mm(values_of, weights.mT)
    return y.mT.unflatten(0, q.shape[:2]).to(q.dtype)


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
