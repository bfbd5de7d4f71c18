"""Where a regional prompt holds: boxes and masks as soft weights over the latents."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixsigma.editing.canvas import Canvas
from pixsigma.editing.opening import open_mask

if TYPE_CHECKING:
    from pixsigma.requests import Region


def region_mask(
    region: "Region", size: tuple[int, int], factor: int, canvas: Canvas | None = None
) -> Tensor:
    """(1, 1, H, W) in [0, 1] of a drawing of `size` (height, width) in pixels, `factor` a latent;
    1 where only the region's text counts.

    Its place is in the whole picture, of which the drawing shows the box of `canvas`, or all.
    Raises InputError for a mask that cannot be read.
    """
    if canvas is None:
        return _laid(region, size[0] // factor, size[1] // factor)
    left, top, right, bottom = canvas.box
    whole = _laid(region, canvas.picture.height, canvas.picture.width)
    return F.avg_pool2d(canvas.filled(whole[:, :, top:bottom, left:right]), factor)


def _laid(region: "Region", height: int, width: int) -> Tensor:
    """(1, 1, height, width) of a whole picture."""
    if region.mask is not None:
        grey = open_mask(region.mask).resize((width, height), Image.Resampling.BOX)
        return torch.from_numpy(np.array(grey, dtype=np.float32))[None, None] / 255
    assert region.box is not None, "a region has a box or a mask"
    left, top, right, bottom = region.box
    across = ramp(left, right, width, region.soft)
    down = ramp(top, bottom, height, region.soft)
    return (down[:, None] * across)[None, None]


def ramp(low: float, high: float, num: int, soft: float) -> Tensor:
    """(num,): 1 between the shares `low` and `high`, a slope `soft` wide at each end inside."""
    places = (torch.arange(num) + 0.5) / num
    width = max(soft, 1e-6)
    # an edge that is the picture's own has no slope: nothing lies beyond it
    rise = (places - low) / width + 0.5 if low > 0 else torch.ones(num)
    fall = (high - places) / width + 0.5 if high < 1 else torch.ones(num)
    return rise.clamp(0, 1) * fall.clamp(0, 1)
