"""The public face: a name that comes or goes is a decision, made here in the open."""

import importlib

import pixsigma

NAMES = [
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
    "SAMPLERS",
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


def test_public_names_are_these() -> None:
    assert sorted(pixsigma.__all__) == NAMES
    assert sorted(NAMES) == NAMES


def test_every_public_name_is_where_it_says() -> None:
    for name in NAMES:
        assert getattr(pixsigma, name) is not None
    for name, home in pixsigma._HOME.items():
        found = getattr(pixsigma, name)
        assert found is getattr(importlib.import_module(f"pixsigma.{home}"), name)
        if isinstance(found, type):
            assert found.__module__ == f"pixsigma.{home}"


def test_every_error_is_in_the_drawing() -> None:
    from pixsigma import errors

    drawn = errors.__doc__ or ""
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    assert len(kinds) > 10
    for kind in kinds:
        assert kind.__name__ in drawn
        assert issubclass(kind, errors.PixsigmaError)
        assert kind.__name__ in NAMES
