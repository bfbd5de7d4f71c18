"""What a plan has to know of a model: configs and sizes, from headers alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pixsigma.config import AutoencoderConfig, T5Config, TransformerConfig
from pixsigma.errors import MissingWeightsError
from pixsigma.presets import GUIDANCE_SCALE, PRESETS
from pixsigma.weights import folder as folders
from pixsigma.weights.build import ALL_PARTS, locate
from pixsigma.weights.controls import Outline, control_file, outline_of
from pixsigma.weights.index import folder_guidance
from pixsigma.weights.keymaps import T5
from pixsigma.weights.locate import FileChoice

PUBLISHED_BYTES = {"transformer": 4, "text_encoder": 4, "autoencoder": 4}
"""A parameter on disk in the published repositories."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A model before it is loaded."""

    name: str
    transformer: TransformerConfig
    text_encoder: T5Config
    autoencoder: AutoencoderConfig
    stored: dict[str, float]
    """Part to the bytes that a parameter of it has on disk."""
    streamable: bool = True
    """Whether the text encoder is in safetensors, which can be read layer by layer."""
    here: bool = True
    """Whether the files are on this machine; else these are the published sizes."""
    guidance_scale: float = GUIDANCE_SCALE
    """What suits the model."""
    controls: tuple[Outline, ...] = ()
    """ControlNets and image prompts beside the transformer."""

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the transformer was trained on."""
        side = self.transformer.sample_size * self.autoencoder.factor
        return side, side

    @property
    def multiple(self) -> int:
        """What heights and widths in pixels must be multiples of."""
        return self.autoencoder.factor * self.transformer.patch_size


def facts_of(
    name: str | Path,
    text_and_vae: str | Path | None = None,
    controlnets: Iterable[str | Path] = (),
) -> Facts:
    """The facts of what `load_components` would load; nothing is downloaded.

    A preset that is not on this machine has the published configs. Raises WeightsError.
    """
    files = dict.fromkeys(control_file(path) for path in controlnets)
    controls = tuple(outline_of(file) for file in files)
    known = PRESETS.get(str(name))
    try:
        choice = FileChoice(offline=True)
        opened, source = locate(name, ALL_PARTS, text_and_vae, choice)
        text, text_tensors, file = folders.open_text_encoder(source.of("text_encoder"), choice)
        autoencoder, tensors = folders.open_autoencoder(source.of("vae"), choice)
    except MissingWeightsError:
        if known is None or known.transformer is None:
            raise
        return Facts(
            name=known.name,
            transformer=known.transformer,
            text_encoder=T5Config(),
            autoencoder=AutoencoderConfig(),
            stored=dict(PUBLISHED_BYTES),
            here=False,
            controls=controls,
        )
    parts = {
        "transformer": opened.tensors,
        "text_encoder": T5.to_ours(text_tensors),
        "autoencoder": tensors,
    }
    sizes = {
        part: found.num_bytes / max(1, sum(spec.num_elements for spec in found.specs.values()))
        for part, found in parts.items()
    }
    return Facts(
        name=str(name),
        transformer=opened.config,
        text_encoder=text,
        autoencoder=autoencoder,
        stored=sizes,
        streamable=file.suffix in (".safetensors", ".json"),
        guidance_scale=folder_guidance(source.main),
        controls=controls,
    )
