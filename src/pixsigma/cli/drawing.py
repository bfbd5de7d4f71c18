"""The work of `pixsigma generate`: load once, then draw, save and tell, request by request."""

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pixsigma._version import __version__
from pixsigma.cli.fitting import asked_way, choose_dtype, fitted, sized
from pixsigma.cli.progress import stage, watch_many
from pixsigma.denoising import Step
from pixsigma.diffusion.steering import sampler_for
from pixsigma.editing.opening import fingerprint, shortened
from pixsigma.errors import InputError
from pixsigma.images import check_writable, picture_stem, write_picture
from pixsigma.machine import parse_memory
from pixsigma.placement import choose_device
from pixsigma.provenance import COMPOSITE, KINDS, MADE, check_room
from pixsigma.quantize import check_mode
from pixsigma.requests import GenerationRequest, request_from
from pixsigma.signing import Signer
from pixsigma.weights.adapters import adapter_file
from pixsigma.weights.controls import control_file

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline

_FOREIGN_SUFFIXES = {".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl", ".heic"}

_TOLD_LATER = 500  # bytes of settings that are known only after the drawing, and some more

_LONGEST_NAME = 240  # file systems take 255, a counter needs a few


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one command is to do."""

    requests: list[GenerationRequest]
    model: str = "mini"
    out: Path = Path("outputs")
    """A folder, or a file that ends in .png, .jpg or .webp."""
    metadata: bool = True
    """Whether the settings are written into the pictures; the mark of IPTC always is."""
    sign: tuple[Path, Path, str | None] | None = None
    """Certificates, key and an authority for the time, where pictures are signed."""
    aspect: tuple[int, int] | None = None
    """Width and height of the shape, for requests that name no size."""
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    """One of the modes of `pixsigma.quantize`."""
    text_and_vae: str | None = None
    memory: str | None = None
    """A limit such as 4GB."""
    decode: str = "auto"
    prompt_cache: str = "auto"
    batch: int = 4
    """Pictures that are in the making together."""
    json: bool = False
    quiet: bool = False

    @property
    def named(self) -> bool:
        """Whether `out` is a file."""
        return self.out.suffix.lower() in KINDS

    @property
    def folder(self) -> Path:
        """Where the pictures go."""
        return self.out.parent if self.named else self.out

    @property
    def suffix(self) -> str:
        """The ending of the pictures' names."""
        return self.out.suffix if self.named else ".png"

    def stem(self, request: GenerationRequest, seed: int) -> str:
        """The name of a picture without its ending."""
        return self.out.stem if self.named else picture_stem(request.prompt, seed)


def draw_all(job: Job) -> None:
    """Check everything that can be checked, load, then draw; a result is told as it is saved."""
    check(job)
    device = choose_device(job.device)
    check_mode(job.quantize, device)
    dtype = choose_dtype(job.dtype, device)
    signer = Signer.from_files(*job.sign) if job.sign else None
    with stage(f"loading {job.model}", job.quiet):
        pipe = load(job, device, dtype)
    check_writable(job.folder)
    requests = [settled(request, job, pipe) for request in job.requests]
    steps = pipe.stream_many(requests, at_once=job.batch)
    for number, done, seconds in watch_many(steps, len(requests), job.quiet):
        for result in saved(pipe, requests[number], job, done, seconds, signer):
            tell(result, job)


def check(job: Job) -> None:
    """Raise InputError for what is known to fail before anything is loaded."""
    if job.out.suffix.lower() in _FOREIGN_SUFFIXES:
        raise InputError(f"pixsigma writes {', '.join(KINDS)} files, got --out {job.out}")
    if len(os.fsencode(job.out.name)) > _LONGEST_NAME:
        raise InputError(f"a name in --out has at most {_LONGEST_NAME} bytes, got {job.out.name}")
    if job.memory is not None:
        parse_memory(job.memory)
    asked_way(job.decode)
    for request in job.requests:
        sampler_for(request.sampler, request.eta, request.guidance)
        for choice in request.loras:
            adapter_file(choice.path)
        for control in request.control:
            if control.network is not None:
                control_file(control.network)
        told = {**remembered(request), "model": job.model, "text_and_vae": job.text_and_vae}
        told["quantize"] = job.quantize
        if job.metadata:
            check_room(KINDS[job.suffix.lower()], told, spare=_TOLD_LATER)


def load(job: Job, device: torch.device, dtype: torch.dtype) -> "PixArtSigmaPipeline":
    """The pipeline of the job's model, placed so that it has room."""
    return fitted(
        job.model,
        job.requests,
        device=device,
        dtype=dtype,
        memory=job.memory,
        decode=job.decode,
        prompt_cache=job.prompt_cache,
        text_and_vae=job.text_and_vae,
        quantize=job.quantize,
        aspect=job.aspect,
        batch=job.batch,
    )


def settled(request: GenerationRequest, job: Job, pipe: "PixArtSigmaPipeline") -> GenerationRequest:
    """The request with its size, seed and guidance settled."""
    defaults = {"seed": secrets.randbelow(2**32), "guidance_scale": pipe.default_guidance}
    request = sized(request, pipe.default_size, pipe.multiple, job.aspect)
    return request_from(**defaults | request.model_dump(exclude_none=True))


def saved(
    pipe: "PixArtSigmaPipeline",
    request: GenerationRequest,
    job: Job,
    done: Step,
    seconds: float,
    signer: Signer | None = None,
) -> Iterator[dict[str, Any]]:
    """Write the pictures of a request, yield what is to be told of each."""
    for image, seed in zip(done.images, done.seeds, strict=True):
        settings = remembered(request) | {
            "seed": seed,
            "num_images": 1,
            "model": job.model,
            "text_and_vae": job.text_and_vae,
            "quantize": job.quantize,
            "decode": pipe.decoding,
            "device": str(pipe.device),
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "pixsigma": __version__,
        }
        path = write_picture(
            image,
            job.folder,
            job.stem(request, seed),
            settings if job.metadata else None,
            suffix=job.suffix,
            source_type=COMPOSITE if request.mask or request.extend else MADE,
            signer=signer,
        )
        size = {"width": image.width, "height": image.height}
        yield {"path": str(path), "seconds": round(seconds, 2), **settings, **size}


def remembered(request: GenerationRequest) -> dict[str, Any]:
    """The request as its picture tells it: with fingerprints of the files it began from.

    A picture that came as data is not repeated. Raises InputError for files that cannot be read.
    """
    told = request.model_dump()
    for field in ("image", "mask"):
        if source := told[field]:
            told[f"{field}_sha256"] = fingerprint(source)
            told[field] = shortened(source)
    for control in told["control"]:
        control["hint_sha256"] = fingerprint(control["hint"])
        control["hint"] = shortened(control["hint"])
    masks = [region.mask for region in request.regions]
    if any(masks):
        told["regions_sha256"] = [mask and fingerprint(mask) for mask in masks]
        for region, mask in zip(told["regions"], masks, strict=True):
            region["mask"] = mask and shortened(mask)
    return told


def tell(result: dict[str, Any], job: Job) -> None:
    """Say on stdout where a picture lies and what it is."""
    if job.json:
        line = json.dumps(result, ensure_ascii=False)
    elif job.quiet:
        line = result["path"]
    else:
        line = (
            f"{result['path']}  {result['width']}x{result['height']}  seed {result['seed']}  "
            f"{result['model']}  {result['seconds']:.1f} s"
        )
    print(line, flush=True)
