"""`pixsigma serve`: the studio and the API, on one port."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixsigma.cli import options

if TYPE_CHECKING:
    from pixsigma.server.service import Service


def serve(
    host: Annotated[str, typer.Option(help="Address; others than this machine need --keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    model: Annotated[
        list[str] | None, typer.Option(help="As of generate; repeatable, the first is the default.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder for jobs and pictures.")] = Path(
        "pixsigma-data"
    ),
    keys: Annotated[Path | None, typer.Option(help="A file of clients' keys, as hashes.")] = None,
    add_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make a key in --keys, show it once, end.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="A web page's origin that may use the API; repeatable.")
    ] = None,
    loras: Annotated[
        Path | None, typer.Option(help="A folder of adapters that clients may name.")
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="A TOML file of what prompts are refused for.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Such as max_steps=50, rate=30; repeatable."),
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Jobs whose steps share batches.")] = 8,
    studio: Annotated[bool, typer.Option("--studio/--no-studio", help="The page at /.")] = True,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for running jobs at the end; then they wait.")
    ] = 30.0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    text_and_vae: options.TextAndVae = None,
) -> None:
    """Serve pictures: a studio for people at /, an API for programs at /v1."""
    if add_key is not None:
        make_key(keys, add_key)
        return
    from pixsigma.server.keys import check_host, is_loopback, read_keys

    known = read_keys(keys) if keys else None
    check_host(host, known)
    check_free(host, port)
    origins = [checked_origin(each) for each in origin or ()]
    require_extra(studio)
    flags = {"device": device, "dtype": dtype, "text_and_vae": text_and_vae}
    service = make_service(model or ["mini"], data, loras, rules, limit or [], at_once, flags)

    import uvicorn

    from pixsigma.server.app import LOOPBACK, create_app

    hosts = {*LOOPBACK, host} if is_loopback(host) else None
    app = create_app(service, keys=known, hosts=hosts, origins=origins, studio=studio, grace=grace)
    typer.echo(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    # streams of events would keep the server from stopping; their readers ask again
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)


def check_free(host: str, port: int) -> None:
    """Raise InputError where the port cannot be listened at."""
    import socket

    from pixsigma.errors import InputError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise InputError(
            f"port {port} of {host} cannot be had ({error.strerror}); give another with --port"
        ) from error


def checked_origin(text: str) -> str:
    """A page's origin as browsers tell it; raises InputError."""
    from urllib.parse import urlsplit

    from pixsigma.errors import InputError

    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or text != f"{parts.scheme}://{parts.netloc}":
        raise InputError(f"--origin is scheme and host such as https://shop.example, got {text!r}")
    return text


def make_key(keys: Path | None, name: str) -> None:
    """Add a client to the file and show its key, which nobody can read again."""
    from pixsigma.errors import InputError
    from pixsigma.server.keys import add_key

    if keys is None:
        raise InputError("--add-key NAME needs --keys FILE, where its hash is kept")
    typer.echo(add_key(keys, name))


def require_extra(studio: bool) -> None:
    """Raise MissingExtraError where the server's libraries are not installed."""
    import importlib.util

    from pixsigma.errors import MissingExtraError

    wanted = ["fastapi", "greenlet", "multipart", "prometheus_client", "uvicorn"]
    wanted += ["gradio"] if studio else []
    if missing := [name for name in wanted if importlib.util.find_spec(name) is None]:
        raise MissingExtraError(
            f"the server needs {', '.join(missing)}: pip install 'pixsigma[serve]'"
            + (", or leave the page out with --no-studio" if missing == ["gradio"] else "")
        )


def make_service(
    models: Sequence[str],
    data: Path,
    loras: Path | None,
    rules: Path | None,
    limits: Sequence[str],
    at_once: int,
    flags: dict[str, Any],
) -> "Service":
    """Load everything that is served."""
    from pixsigma.cli.fitting import choose_dtype
    from pixsigma.cli.progress import stage
    from pixsigma.images import check_writable
    from pixsigma.pipeline import PixArtSigmaPipeline
    from pixsigma.placement import choose_device
    from pixsigma.server.policy import Policy, read_rules
    from pixsigma.server.service import Service

    numbers, found = parse_limits(limits), find_loras(loras)
    policy = Policy(before=[read_rules(rules)] if rules else [])
    device = choose_device(flags["device"])
    dtype = choose_dtype(flags["dtype"], device)
    pipes = {}
    for name in models:
        with stage(f"loading {name}", False):
            pipes[name] = PixArtSigmaPipeline.from_pretrained(
                name, torch_dtype=dtype, text_and_vae=flags["text_and_vae"]
            ).to(device)
    check_writable(data)
    return Service(pipes, data, limits=numbers, policy=policy, loras=found, at_once=at_once)


def parse_limits(pairs: Sequence[str]) -> Any:
    """NAME=NUMBER pairs as Limits; raises InputError."""
    from pydantic import ValidationError

    from pixsigma.errors import InputError
    from pixsigma.server.limits import Limits

    given = dict(pair.partition("=")[::2] for pair in pairs)
    try:
        return Limits.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        unknown = first["type"] == "extra_forbidden"
        what = "is no limit" if unknown else first["msg"].replace("Input should", "must")
        known = ", ".join(Limits.model_fields)
        raise InputError(f"--limit {first['loc'][0]} {what}; known: {known}") from error


def find_loras(folder: Path | None) -> dict[str, Path]:
    """The adapters of a folder by the names of their files; raises InputError."""
    from pixsigma.errors import InputError

    if folder is None:
        return {}
    if not folder.is_dir():
        raise InputError(f"--loras must be a folder of adapters, there is none at {folder}")
    kinds = (".safetensors", ".pt", ".pth", ".bin")
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in kinds}
