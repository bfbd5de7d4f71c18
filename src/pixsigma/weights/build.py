"""A name or a path to the parts of a model."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from pixsigma.diffusion.samplers.base import Sampler
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError, MissingWeightsError
from pixsigma.given import expanded
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.text import T5TextEncoder
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.presets import GUIDANCE_SCALE, MAX_TOKENS, PRESETS, TEXT_AND_VAE, Variant
from pixsigma.weights import folder as folders
from pixsigma.weights import hub, index
from pixsigma.weights.locate import FileChoice

Part: TypeAlias = Literal["transformer", "text_encoder", "autoencoder"]

ALL_PARTS: tuple[Part, ...] = ("transformer", "text_encoder", "autoencoder")

FOLDER_OF: dict[Part, str] = {
    "transformer": "transformer",
    "text_encoder": "text_encoder",
    "autoencoder": "vae",
}
"""Part to its folder in diffusers layout."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """What a pipeline is made of; networks are on the CPU, for inference; None is not loaded."""

    transformer: PixArtTransformer | None
    text_encoder: T5TextEncoder | None
    autoencoder: KLAutoencoder | None
    sampler: Sampler
    """As the model was published, or ours by default."""
    schedule: NoiseSchedule
    variant: Variant
    max_tokens: int
    """L: tokens of a prompt that the model reads."""
    resolution: int
    """Side in pixels of the pictures that it was trained on."""
    name: str
    """What was asked for."""
    guidance_scale: float = GUIDANCE_SCALE
    """What suits the model, for requests that name none."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the parts of a model are on this machine."""

    main: Path
    """A model's folder, a transformer's folder, or a transformer's file."""
    rest: Path | None = None
    """A folder with text encoder and autoencoder."""
    rest_first: bool = False
    """Whether `rest` was asked for, and so goes before what `main` has."""

    @property
    def order(self) -> tuple[Path | None, Path | None]:
        """Where a part is looked for, first to last."""
        return (self.rest, self.main) if self.rest_first else (self.main, self.rest)

    def of(self, part: str) -> Path:
        """The folder that has `part/`; the main one where none has it, so that errors tell it."""
        for folder in self.order:
            if folder is not None and (folder / part).is_dir():
                return folder
        if self.rest is None and not self.main.is_dir():
            raise MissingWeightsError(
                f"{self.main.name} is a transformer alone; say where text encoder and autoencoder "
                "come from (--text-and-vae, text_and_vae=), or pass them"
            )
        return self.rest or self.main


def load_components(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    parts: Collection[Part] = ALL_PARTS,
    text_and_vae: str | Path | None = None,
    resolution: int | None = None,
    variant: Variant | None = None,
    file_variant: str | None = None,
    use_safetensors: bool | None = None,
    stream_text: bool | int = False,
    prompt_cache: str | Path | None = None,
    offline: bool = False,
    int8: str | None = None,
) -> Components:
    """Load `mini`, a preset, a folder, a `.pth` or `.safetensors` file, or a hub name.

    `parts` names what to load. A transformer that comes alone takes the other parts from
    `text_and_vae`, by default the published ones on the hub. `resolution` and `variant` are hints
    for files that do not tell; `file_variant` (`fp16`) and `use_safetensors` choose among copies.
    `int8` is a mode in which the transformer is quantised while it is read. `stream_text` leaves
    the text encoder in its file, read layer by layer as it works; a number is how many bytes of it
    stay. `prompt_cache` is a folder that answers for it where a prompt was encoded before.
    Raises WeightsError or InputError.
    """
    if unknown := set(parts) - set(ALL_PARTS):
        raise InputError(f"parts are {', '.join(ALL_PARTS)}; got {', '.join(sorted(unknown))}")
    choice = FileChoice(variant=file_variant, use_safetensors=use_safetensors, offline=offline)
    opened, source = locate(name_or_path, parts, text_and_vae, choice, resolution, variant)
    told = opened.detected.variant
    tokens = _tokens(source, told)
    text = vae = None
    if "text_encoder" in parts:
        text = folders.read_text_encoder(
            source.of("text_encoder"),
            dtype=dtype,
            max_tokens=tokens,
            choice=choice,
            stream=stream_text,
            prompt_cache=prompt_cache,
        )
    if "autoencoder" in parts:
        vae = folders.read_autoencoder(source.of("vae"), dtype=dtype, choice=choice)
        folders.check_latents(opened.config, vae)
    sampler, schedule = folders.read_sampler(_with_scheduler(source))
    return Components(
        transformer=opened.load(dtype, int8=int8) if "transformer" in parts else None,
        text_encoder=text,
        autoencoder=vae,
        sampler=sampler,
        schedule=schedule,
        variant=told,
        max_tokens=tokens,
        resolution=opened.config.sample_size * folders.latent_pixels(*source.order),
        name=str(name_or_path),
        guidance_scale=index.folder_guidance(source.main),
    )


def locate(
    name_or_path: str | Path,
    parts: Collection[Part] = ALL_PARTS,
    text_and_vae: str | Path | None = None,
    choice: FileChoice | None = None,
    resolution: int | None = None,
    variant: Variant | None = None,
) -> tuple[folders.OpenTransformer, Source]:
    """What the transformer is and where the other parts are, before any weights are read.

    The arguments are those of `load_components`. Raises WeightsError.
    """
    choice = choice or FileChoice()
    known = PRESETS.get(str(name_or_path))
    if known and known.hub:
        resolution, variant = resolution or known.resolution, variant or known.variant
    # Without the transformer its file is still opened: it tells what the model is.
    main = resolve(name_or_path, parts, choice)
    opened = folders.open_transformer(main, choice=choice, resolution=resolution, variant=variant)
    if text_and_vae is None and (known or not main.is_dir()):
        rest = _missing(main, parts, TEXT_AND_VAE[opened.detected.variant], choice)
        return opened, Source(main=main, rest=rest)
    rest = None if text_and_vae is None else _elsewhere(text_and_vae, _others(parts), choice)
    return opened, Source(main=main, rest=rest, rest_first=True)


def resolve(
    name_or_path: str | Path,
    parts: Collection[Part] = ALL_PARTS,
    choice: FileChoice | None = None,
) -> Path:
    """The file or folder on this machine; what is on the hub is downloaded.

    Raises MissingWeightsError.
    """
    name = str(name_or_path)
    if name in PRESETS:
        repository = PRESETS[name].hub
        if repository is None:
            return _packaged(name)
        name = repository
    elif (here := _here(name_or_path)) is not None:
        return here
    if hub.is_hub_name(name):
        return hub.fetch_folder(name, ["transformer", *_others(parts)], choice=choice)
    if hub.is_hub_file(name):
        return hub.fetch_file(name, offline=bool(choice and choice.offline))
    raise MissingWeightsError(
        f"a model is a folder, a .pth or .safetensors file, organisation/repository on the hub, or "
        f"one of {', '.join(PRESETS)}; there is nothing at {name}"
    )


def _here(name: str | Path) -> Path | None:
    """The file or folder of this name; a run of `pixsigma train` keeps its model in a folder."""
    path = expanded(name)
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for names that are too long
        return None
    run = (path / "model" / "transformer").is_dir() and not (path / "transformer").is_dir()
    return path / "model" if run else path


def _packaged(name: str) -> Path:
    """The folder of the model inside this package."""
    folder = Path(str(resources.files("pixsigma") / name))
    if not (folder / index.INDEX).is_file():
        raise MissingWeightsError(
            f"the model {name} should be inside the package, at {folder}; install pixsigma again"
        )
    return folder


def _others(parts: Collection[Part]) -> list[str]:
    """Folders of what is asked for beside the transformer."""
    return [FOLDER_OF[part] for part in parts if part != "transformer"]


def _missing(main: Path, parts: Collection[Part], name: str, choice: FileChoice) -> Path | None:
    """The published text encoder and autoencoder, if `main` lacks one that is asked for."""
    missing = [folder for folder in _others(parts) if not (main / folder).is_dir()]
    return hub.fetch_folder(name, missing, choice=choice) if missing else None


def _elsewhere(name: str | Path, folders_in: list[str], choice: FileChoice) -> Path:
    """The folder of text encoder and autoencoder that was asked for."""
    known = PRESETS.get(str(name))
    here = None if known else _here(name)
    if here is not None and here.is_dir():
        return here
    if known and known.hub is None:
        return _packaged(known.name)
    repository = str(known.hub if known else name)
    if here is not None or not hub.is_hub_name(repository):
        raise MissingWeightsError(
            "text_and_vae is a folder, a model's name or organisation/repository on the hub, got "
            f"{name}"
        )
    return hub.fetch_folder(repository, folders_in, choice=choice)


def _with_scheduler(source: Source) -> Path:
    alone = source.rest is not None and not (source.main / "scheduler").is_dir()
    return source.rest if alone and source.rest is not None else source.main


def _tokens(source: Source, variant: Variant) -> int:
    """The model's own folder may say; text encoders of the hub serve Σ and α alike."""
    file = source.main / "tokenizer" / "tokenizer_config.json"
    return folders.folder_tokens(source.main) if file.is_file() else MAX_TOKENS[variant]
