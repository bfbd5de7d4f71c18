"""How much one request and one client may ask for; what is beyond is refused before it costs."""

import base64
import binascii
import io
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from pixsigma.buckets import check_size
from pixsigma.errors import BusyError, InputError
from pixsigma.requests import GenerationRequest

UPLOADS = ("PNG", "JPEG", "WEBP")
"""Formats that a client may send; each is told by its first bytes, not by its name."""


class Limits(BaseModel):
    """The numbers; each is a flag of `pixsigma serve`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_pixels: int = Field(default=2048 * 2048, ge=256)
    """Of one picture that is drawn, and of one that is sent."""
    max_steps: int = Field(default=100, ge=1)
    max_images: int = Field(default=8, ge=1)
    """Pictures of one request."""
    max_prompt: int = Field(default=8000, ge=1)
    """Characters of a prompt, of a negative one, and of a region's."""
    max_body: int = Field(default=32 * 2**20, ge=1024)
    """Bytes of a request."""
    max_queue: int = Field(default=200, ge=1)
    """Jobs that wait, of all clients."""
    max_per_client: int = Field(default=50, ge=1)
    """Jobs of one client that wait or run."""
    rate: float = Field(default=120.0, gt=0)
    """Jobs a minute that one client may send, after as many at once."""
    kept: int = Field(default=1000, ge=0)
    """Jobs that are over and still known, with their pictures; older ones are deleted."""


def check_request(
    request: GenerationRequest, limits: Limits, native: tuple[int, int], multiple: int
) -> None:
    """Raise InputError for what this server does not draw.

    `native` is the model's (height, width), `multiple` what its sides are multiples of.
    """
    most = {
        "num_inference_steps": (request.num_inference_steps, limits.max_steps),
        "num_images": (request.num_images, limits.max_images),
        "characters of the prompt": (len(request.prompt), limits.max_prompt),
        "characters of the negative prompt": (len(request.negative_prompt), limits.max_prompt),
        "characters of a region's prompt": (
            max((len(region.prompt) for region in request.regions), default=0),
            limits.max_prompt,
        ),
    }
    for name, (given, allowed) in most.items():
        if given > allowed:
            raise InputError(f"this server takes at most {allowed:,} {name}, got {given:,}")
    if request.control:
        raise InputError("this server has no ControlNets: leave control out")
    height, width = drawn_size(request, limits, native)
    if request.image is None:
        check_size(width, height, multiple)
    if height * width > limits.max_pixels:
        raise InputError(
            f"this server draws at most {limits.max_pixels:,} pixels a picture, "
            f"got {width}x{height} = {height * width:,}"
        )


def drawn_size(
    request: GenerationRequest, limits: Limits, native: tuple[int, int]
) -> tuple[int, int]:
    """(height, width) of the pictures that a request makes; raises InputError for its uploads."""
    height, width = native
    if request.image is not None:
        width, height = upload_size(request.image, limits)
    for mask in (request.mask, *(region.mask for region in request.regions)):
        if mask is not None:
            upload_size(mask, limits)
    if request.width and request.height:
        height, width = request.height, request.width
    sides = request.extend or {}
    height += sides.get("top", 0) + sides.get("bottom", 0)
    return height, width + sides.get("left", 0) + sides.get("right", 0)


def upload_size(source: str, limits: Limits) -> tuple[int, int]:
    """(width, height) of a picture in a `data:` URI, from its header: nothing is decoded.

    Raises InputError for paths and URLs, foreign formats and too many pixels.
    """
    head, comma, text = source.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise InputError(
            "a picture is sent as data:image/png;base64,…; this server opens no path and no URL"
        )
    try:
        data = base64.b64decode(text, validate=True)
        size = Image.open(io.BytesIO(data), formats=UPLOADS).size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"a picture may have {limits.max_pixels:,} pixels: {error}") from error
    except (binascii.Error, OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise InputError(f"a picture must be {', '.join(UPLOADS)}, this is none") from error
    if size[0] * size[1] > limits.max_pixels:
        raise InputError(
            f"a picture may have {limits.max_pixels:,} pixels, this one has {size[0]}x{size[1]}"
        )
    return size


@dataclass
class Rates:
    """A bucket of tokens for each client: full at first, and filled again minute by minute.

    It holds those of a minute, and at least the one that a job takes.
    """

    per_minute: float
    clock: Callable[[], float] = time.monotonic  # the wall clock may jump
    _filled: dict[str, tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, client: str) -> None:
        """Take a token; raises BusyError that says when there will be one."""
        now, room = self.clock(), max(1.0, self.per_minute)
        with self._lock:
            if len(self._filled) > 10_000:
                full = 60 * room / self.per_minute
                self._filled = {k: v for k, v in self._filled.items() if now - v[1] < full}
            tokens, before = self._filled.get(client, (room, now))
            tokens = min(room, tokens + (now - before) * self.per_minute / 60)
            enough = tokens >= 1
            self._filled[client] = (tokens - enough, now)
        if not enough:
            raise BusyError(
                f"this server takes {self.per_minute:g} jobs a minute from a client; slow down",
                retry_after=(1 - tokens) * 60 / self.per_minute,
            )
