"""Where a regional prompt holds: boxes and masks as soft weights over the latents."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixsigma.editing.opening import open_mask

if TYPE_CHECKING:
    from pixsigma.requests import Region


def region_mask(region: "Region", height: int, width: int) -> Tensor:
    """(1, 1, height, width) in [0, 1]; 1 where only the region's text counts.

    Raises InputError for a mask that cannot be read.
    """
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
