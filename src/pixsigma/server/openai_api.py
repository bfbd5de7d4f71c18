"""OpenAI's images API over our jobs, for clients that are written already.

Fields of ours (num_inference_steps, seed, negative_prompt, …) go beside theirs, as `extra_body`.
"""

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from pixsigma.editing.opening import as_data
from pixsigma.errors import InputError
from pixsigma.requests import GenerationRequest, request_from
from pixsigma.server.doorway import complaint, refused
from pixsigma.server.events import told, watch
from pixsigma.server.limits import UPLOADS, upload_size
from pixsigma.server.service import Format, JobRequest, Service, Status

QUALITY_STEPS = {"low": 10, "medium": 20, "standard": 20, "high": 30, "hd": 30, "auto": 20}
"""What `quality` means where `num_inference_steps` is not given."""

_KINDS = {"generation": "image_generation", "edit": "image_edit", "variation": "image_variation"}


class ImagesRequest(BaseModel):
    """OpenAI's fields; every other one must be a field of a GenerationRequest."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    prompt: str = ""
    model: str | None = None
    n: int = Field(default=1, ge=1, le=1000)
    size: str = "auto"
    """`WIDTHxHEIGHT`, or `auto` for the model's own or the picture's."""
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Format = "png"
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3)
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    """Taken as it is: what is refused is for this server's rules to say."""
    user: str | None = None
    """Taken and not looked at: clients are told apart by their keys."""

    def job(self, pictures: Mapping[str, str], most_steps: int) -> JobRequest:
        """The same in our words, a quality with `most_steps` at most; raises InputError."""
        fields: dict[str, Any] = {
            "num_inference_steps": min(QUALITY_STEPS[self.quality], most_steps),
            **(self.model_extra or {}),
            **pictures,
            "prompt": self.prompt,
            "num_images": self.n,
        }
        if self.size != "auto":
            width, cross, height = self.size.partition("x")
            if not (cross and width.isdecimal() and height.isdecimal() and len(self.size) < 20):
                raise InputError(f"size must be auto or such as 1024x1024, got {self.size[:40]!r}")
            fields |= {"width": int(width), "height": int(height)}
        return JobRequest(
            request=request_from(**fields), model=self.model or None, format=self.output_format
        )


def add_openai_api(app: FastAPI, service: Service, client: Any) -> None:
    """`/v1/models` and `/v1/images/…`."""
    Client = Annotated[str, Depends(client)]

    @app.get("/v1/models", tags=["openai"])
    def models(who: Client) -> dict[str, Any]:
        """The models of this server."""
        return {"object": "list", "data": [model_card(name) for name in service.pipes]}

    @app.get("/v1/models/{name:path}", tags=["openai"])
    def model(name: str, who: Client) -> Any:
        """One of them."""
        if name not in service.pipes:
            return refused(404, f"this server has {', '.join(service.pipes)}", "model_not_found")
        return model_card(name)

    @app.post("/v1/images/generations", tags=["openai"], response_model=None)
    async def generations(request: Request, wanted: ImagesRequest, who: Client) -> Any:
        """Draw from a prompt."""
        return await answer(service, request, wanted, {}, who, "generation")

    form = {"requestBody": {"content": {"multipart/form-data": {"schema": {"type": "object"}}}}}

    @app.post("/v1/images/edits", tags=["openai"], response_model=None, openapi_extra=form)
    async def edits(request: Request, who: Client) -> Any:
        """Draw from a prompt and a picture; where a mask is transparent, it is drawn anew."""
        fields, pictures = await read_form(request, service)
        return await answer(service, request, fields, pictures, who, "edit")

    @app.post("/v1/images/variations", tags=["openai"], response_model=None, openapi_extra=form)
    async def variations(request: Request, who: Client) -> Any:
        """Draw from a picture, and a prompt where one is given."""
        fields, pictures = await read_form(request, service)
        return await answer(service, request, fields, pictures, who, "variation")


def model_card(name: str) -> dict[str, Any]:
    """A model as OpenAI lists it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "pixsigma"}


async def answer(
    service: Service,
    request: Request,
    wanted: ImagesRequest,
    pictures: Mapping[str, str],
    who: str,
    kind: str,
) -> Any:
    """Draw and answer at once, or stream; a client that goes away takes its job with it."""
    asked = wanted.job(pictures, service.limits.max_steps)
    job = await asyncio.to_thread(service.submit, asked, who)
    if wanted.stream:
        steps = streamed(service, job.id, wanted, _KINDS[kind])
        return StreamingResponse(steps, media_type="text/event-stream")
    status = await finished(service, job.id, request)
    if status.job.state != "done":
        return failure(status)
    files = service.files(status.job)
    if wanted.response_format == "url":
        base = str(request.base_url).rstrip("/")
        data = [{"url": f"{base}/v1/jobs/{job.id}/results/{file.name}"} for file in files]
    else:
        data = [{"b64_json": encoded(file.read_bytes())} for file in files]
    return {
        "created": int(status.job.created),
        "data": data,
        "output_format": wanted.output_format,
        "seeds": status.job.seeds,
    }


async def finished(service: Service, id: str, request: Request) -> Status:
    """The job's end; it is cancelled where nobody waits for it any more."""
    last = None
    try:
        async for status in watch(service, id, None):
            last = status
            if await request.is_disconnected():
                await asyncio.to_thread(service.cancel, id)
    except asyncio.CancelledError:
        service.cancel(id)
        raise
    assert last is not None
    return last


async def streamed(
    service: Service, id: str, wanted: ImagesRequest, kind: str
) -> AsyncIterator[str]:
    """Partial pictures at equal distances, then the pictures."""
    common = {
        "created_at": int(time.time()),
        "size": wanted.size,
        "quality": wanted.quality,
        "background": "opaque",
        "output_format": wanted.output_format,
    }
    sent = 0
    status = await asyncio.to_thread(service.status, id)
    try:
        async for status in watch(service, id, None, previews=wanted.partial_images > 0):
            seen = status.glimpse
            if seen is None or seen.preview is None or seen.num_previews == 0:
                continue
            share = seen.index / max(1, seen.total)
            if sent < wanted.partial_images and share >= (sent + 1) / (wanted.partial_images + 1):
                data = {"b64_json": encoded(seen.preview), "partial_image_index": sent}
                yield _event(f"{kind}.partial_image", common | {"output_format": "jpeg"} | data)
                sent += 1
    finally:
        if not status.job.over:
            service.cancel(id)
    if status.job.state != "done":
        body = json.loads(bytes(failure(status).body))
        yield told("error", {"type": "error"} | body)
        return
    for file in service.files(status.job):
        picture = {"b64_json": encoded(file.read_bytes())}
        yield _event(f"{kind}.completed", common | picture)


def failure(status: Status) -> JSONResponse:
    """What a client is told of a job that has no picture."""
    reason = status.job.reason or f"the job was {status.job.state}"
    if status.job.kind == "PolicyError":
        return refused(400, reason, "content_policy_violation")
    if status.job.kind in ("InputError", "SizeError", "UnknownNameError"):
        return refused(400, reason, "invalid_value")
    return refused(500 if status.job.state == "failed" else 409, reason, status.job.kind)


async def read_form(request: Request, service: Service) -> tuple[ImagesRequest, dict[str, str]]:
    """The fields and pictures of a form; raises InputError."""
    fields: dict[str, Any] = {}
    pictures: dict[str, str] = {}
    async with request.form(max_files=2, max_fields=60) as form:
        for name, value in form.multi_items():
            name = "image" if name == "image[]" else name
            if name in fields or name in pictures:
                raise InputError(f"{name} stands twice in the form; one picture can be edited")
            if isinstance(value, UploadFile):
                pictures[name] = as_uri(await value.read())
            else:
                fields[name] = plain(name, value)
    if strange := sorted({*pictures} - {"image", "mask"}):
        raise InputError(f"files are image and mask, got {strange[0][:40]!r}")
    if "image" not in pictures:
        raise InputError("image is missing: send the picture as a file of the form")
    if "mask" in pictures:
        pictures["mask"] = await asyncio.to_thread(mask_from, pictures["mask"], service)
    try:
        return ImagesRequest.model_validate(fields), pictures
    except ValidationError as error:
        raise InputError(complaint(dict(error.errors()[0]))) from error


def plain(name: str, text: str) -> Any:
    """A field of a form, which is text, as what its name stands for."""
    known = {**GenerationRequest.model_fields, **ImagesRequest.model_fields}
    if name not in known or str in (known[name].annotation, *_members(known[name].annotation)):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _members(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", ())


def as_uri(data: bytes) -> str:
    """A file as our requests hold pictures; what it is, its content says."""
    return f"data:image/png;base64,{encoded(data)}"


def mask_from(source: str, service: Service) -> str:
    """OpenAI's mask (transparent is drawn anew) as ours (white is); raises InputError."""
    upload_size(source, service.limits)
    data = base64.b64decode(source.partition(",")[2])
    try:
        with Image.open(io.BytesIO(data), formats=UPLOADS) as image:
            if not image.has_transparency_data:
                raise InputError("a mask is transparent where the picture is to be drawn anew")
            alpha = image.convert("RGBA").getchannel("A")
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the mask cannot be read: {error}") from error
    return as_data(ImageChops.invert(alpha))


def encoded(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode("ascii")


def _event(kind: str, data: dict[str, Any]) -> str:
    return told(kind, {"type": kind} | data)
