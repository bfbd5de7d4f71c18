"""How far a set of drawings is from real pictures, and whether drawings are copies."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pixsigma.errors import InputError
from pixsigma.evaluation.features import Array, on_white

THUMBNAIL = 24
COPY = 0.95
"""Correlation of thumbnails from which on a drawing counts as a copy."""


def kernel_distance(a: Array, b: Array) -> float:
    """Unbiased squared maximum mean discrepancy of unit features (n, D) and (m, D).

    The cubic kernel (x·y + 1)³ of the Kernel Inception Distance (Bińkowski et al. 2018), on
    features of length one where they divide by the width. About 0 for two samples of one
    distribution, and then negative as often as not. Raises InputError for fewer than two rows.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"a kernel distance needs two pictures a side, got {len(a)} and {len(b)}")
    return _mean_of_pairs(a) + _mean_of_pairs(b) - 2 * float(_kernel(a, b).mean())


def _kernel(a: Array, b: Array) -> Array:
    values: Array = (a.astype(np.float64) @ b.astype(np.float64).T + 1) ** 3
    return values


def _mean_of_pairs(a: Array) -> float:
    values = _kernel(a, a)
    return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))


def thumbnails(pictures: Sequence[Image.Image]) -> Array:
    """What stands out of its ground, (n, 24·24·3) of unit length; zeros for an empty picture.

    The ground is the median colour of the border, so that two small things on one colour are not
    alike because of the colour.
    """
    rows = [np.zeros((0, 3 * THUMBNAIL**2), np.float16)]
    for picture in pictures:
        small = on_white(picture).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        pixels = np.asarray(small, dtype=np.float32)
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        flat = (pixels - np.median(edge, axis=0)).reshape(1, -1)
        rows.append((flat / max(float(np.linalg.norm(flat)), 1.0)).astype(np.float16))
    return np.concatenate(rows)


def nearest(drawn: Array, training: Array) -> Array:
    """Correlation of each thumbnail with its nearest training picture, (n,)."""
    found: Array = (drawn.astype(np.float32) @ training.astype(np.float32).T).max(axis=1)
    return found


def share_of_copies(drawn: Array, training: Array) -> float:
    """Share of thumbnails that are near-duplicates of a training picture."""
    return float((nearest(drawn, training) >= COPY).mean())
