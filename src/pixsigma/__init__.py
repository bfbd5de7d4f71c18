"""PixArt-Σ: text to 1024px, 2K and 4K pictures, with a small model inside.

from pixsigma import PixArtSigmaPipeline

pipe = PixArtSigmaPipeline.from_pretrained("mini")
pipe("A small cactus with a happy face in the Sahara desert.").images[0].save("cactus.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pixsigma._version import __version__

if TYPE_CHECKING:
    from pixsigma.config import (
        AutoencoderConfig,
        KVCompression,
        ScheduleConfig,
        T5Config,
        TransformerConfig,
    )
    from pixsigma.denoising import Step
    from pixsigma.diffusers_call import PipelineOutput
    from pixsigma.diffusion.samplers import SAMPLERS, get_sampler
    from pixsigma.diffusion.schedule import NoiseSchedule
    from pixsigma.errors import (
        BusyError,
        CorruptWeightsError,
        InputError,
        MismatchError,
        MissingExtraError,
        MissingWeightsError,
        NotFiniteError,
        OutOfMemoryError,
        OutputError,
        PixsigmaError,
        PolicyError,
        PromptFileError,
        SizeError,
        UnknownNameError,
        UnsafeWeightsError,
        WeightsError,
    )
    from pixsigma.models.autoencoder import KLAutoencoder
    from pixsigma.models.t5 import T5Encoder
    from pixsigma.models.text import T5TextEncoder, Tokenizer
    from pixsigma.models.transformer import PixArtTransformer
    from pixsigma.pipeline import PixArtSigmaPipeline
    from pixsigma.requests import GenerationRequest, LoraChoice
    from pixsigma.weights.adapters import AdapterReport
    from pixsigma.weights.build import Components, load_components
    from pixsigma.weights.convert import convert
    from pixsigma.weights.info import describe

_HOME = {
    "AdapterReport": "weights.adapters",
    "AutoencoderConfig": "config",
    "BusyError": "errors",
    "Components": "weights.build",
    "CorruptWeightsError": "errors",
    "GenerationRequest": "requests",
    "InputError": "errors",
    "KLAutoencoder": "models.autoencoder",
    "KVCompression": "config",
    "LoraChoice": "requests",
    "MismatchError": "errors",
    "MissingExtraError": "errors",
    "MissingWeightsError": "errors",
    "NoiseSchedule": "diffusion.schedule",
    "NotFiniteError": "errors",
    "OutOfMemoryError": "errors",
    "OutputError": "errors",
    "PipelineOutput": "diffusers_call",
    "PixArtSigmaPipeline": "pipeline",
    "PixArtTransformer": "models.transformer",
    "PixsigmaError": "errors",
    "PolicyError": "errors",
    "PromptFileError": "errors",
    "SAMPLERS": "diffusion.samplers",
    "ScheduleConfig": "config",
    "SizeError": "errors",
    "Step": "denoising",
    "T5Config": "config",
    "T5Encoder": "models.t5",
    "T5TextEncoder": "models.text",
    "Tokenizer": "models.text",
    "TransformerConfig": "config",
    "UnknownNameError": "errors",
    "UnsafeWeightsError": "errors",
    "WeightsError": "errors",
    "convert": "weights.convert",
    "describe": "weights.info",
    "get_sampler": "diffusion.samplers",
    "load_components": "weights.build",
}
"""Where each public name lives; it is imported when first asked for, so that start-up is quick."""

__all__ = [
    "SAMPLERS",
    "AdapterReport",
    "AutoencoderConfig",
    "BusyError",
    "Components",
    "CorruptWeightsError",
    "GenerationRequest",
    "InputError",
    "KLAutoencoder",
    "KVCompression",
    "LoraChoice",
    "MismatchError",
    "MissingExtraError",
    "MissingWeightsError",
    "NoiseSchedule",
    "NotFiniteError",
    "OutOfMemoryError",
    "OutputError",
    "PipelineOutput",
    "PixArtSigmaPipeline",
    "PixArtTransformer",
    "PixsigmaError",
    "PolicyError",
    "PromptFileError",
    "ScheduleConfig",
    "SizeError",
    "Step",
    "T5Config",
    "T5Encoder",
    "T5TextEncoder",
    "Tokenizer",
    "TransformerConfig",
    "UnknownNameError",
    "UnsafeWeightsError",
    "WeightsError",
    "__version__",
    "convert",
    "describe",
    "get_sampler",
    "load_components",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pixsigma' has no attribute {name!r}")
    return getattr(import_module(f"pixsigma.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
