"""What a client is told of its job: why it failed, and what its pictures were made from."""

import errno
from pathlib import Path
from typing import Any

from pixsigma.editing.opening import fingerprint, shortened
from pixsigma.errors import OutputError, PixsigmaError
from pixsigma.requests import GenerationRequest

_FULL = (errno.ENOSPC, errno.EDQUOT)


def said(error: BaseException) -> str:
    """The reason as a client may read it: errors of ours in full, those of the disk and others'
    by their kind alone, since they may tell of paths.
    """
    if isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno in _FULL):
        return "this server's disk takes no more; send it again later"
    if isinstance(error, PixsigmaError):
        return str(error)
    if isinstance(error, MemoryError):
        return "this server has too little memory for it; a smaller size would do"
    return f"the server failed while it drew this ({type(error).__name__}); its log tells more"


def remembered(request: GenerationRequest) -> dict[str, Any]:
    """The request as its pictures tell it: without the pictures that it came with, and without
    this machine's paths.
    """
    told = request.model_dump()
    for name in ("image", "mask"):
        if source := told[name]:
            told[f"{name}_sha256"] = fingerprint(source)
            told[name] = shortened(source)
    told["regions"] = [
        region | {"mask": region["mask"] and shortened(region["mask"])}
        for region in told["regions"]
    ]
    told["loras"] = [lora | {"path": Path(lora["path"]).name} for lora in told["loras"]]
    return told
