"""What a ControlNet follows, made from a picture: one way for drawing and for training."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pixsigma.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

KIND = r"^[a-z][a-z0-9_-]{0,39}$"
"""A kind of hint is a word such as edges or depth."""

PICTURE = "picture"
"""The kind of an image prompt: any picture, told to the model as a text is."""

LOW, HIGH = 100, 200
"""Thresholds of Canny's filter: an edge begins above the second and goes on above the first."""


def edges(picture: "Image.Image") -> "Image.Image":
    """White lines on black, one pixel wide (Canny 1986, by OpenCV), in RGB and of the same size.

    Raises MissingExtraError without OpenCV.
    """
    import numpy as np
    from PIL import Image

    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            "edges are found by OpenCV: pip install 'pixsigma[control]'; or give a ready map"
        ) from error
    grey = cv2.cvtColor(np.asarray(picture.convert("RGB")), cv2.COLOR_RGB2GRAY)
    return Image.fromarray(cv2.Canny(grey, LOW, HIGH)).convert("RGB")


MADE: "dict[str, Callable[[Image.Image], Image.Image]]" = {"edges": edges}
"""Kinds of hints that are made from any picture; all others are given ready."""
