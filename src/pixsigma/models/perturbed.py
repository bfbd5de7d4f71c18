"""Self-attention made worse on purpose: the weak prediction that PAG and SEG lead away from."""

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pixsigma.errors import InputError
from pixsigma.interfaces import Perturbation


def perturbed_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], how: Perturbation
) -> Tensor:
    """Attention (B, A, N, K) whose last `how.num_rows` rows are disturbed, the others not.

    `identity`: the attention map is the identity, so every token gives its own value (PAG, Ahn et
    al. 2024). `blur`: the queries are smoothed over the picture (SEG, Hong 2024).
    Raises InputError for the identity where keys and values are compressed.
    """
    num = how.num_rows
    if how.kind == "identity":
        if v.shape[2] != q.shape[2]:
            raise InputError(
                "PAG needs a value for each token, and this layer's are compressed: "
                "name other layers, or take SEG"
            )
        return torch.cat([scaled_dot_product_attention(q[:-num], k[:-num], v[:-num]), v[-num:]])
    q = torch.cat([q[:-num], blurred(q[-num:], grid, how.blur)])
    return scaled_dot_product_attention(q, k, v)


def blurred(q: Tensor, grid: tuple[int, int], blur: float | None) -> Tensor:
    """Queries (B, A, N, K) smoothed over the `grid`; None is without end, which is the mean."""
    if blur is None:
        return q.mean(dim=2, keepdim=True).expand_as(q)
    rows, columns = (blur_matrix(n, blur).to(q) for n in grid)
    squares = q.unflatten(2, grid)
    return torch.einsum("yh,xw,bahwk->bayxk", rows, columns, squares).flatten(2, 3)


def blur_matrix(n: int, sigma: float) -> Tensor:
    """(n, n): a Gaussian of about 6 sigma, cut and normalised, with the edges mirrored."""
    half = math.ceil(6 * sigma) // 2
    offsets = torch.arange(-half, half + 1)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    # a mirrored line repeats after 2 (n - 1) places; a line of one token has only itself
    period = max(2 * (n - 1), 1)
    places = (torch.arange(n)[:, None] + offsets) % period
    places = torch.minimum(places, period - places)
    matrix = torch.zeros(n, n)
    return matrix.scatter_add_(1, places, (weights / weights.sum()).expand(n, -1))
