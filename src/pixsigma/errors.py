"""Every error that pixsigma raises on purpose.

    PixsigmaError
    ├── InputError (ValueError)        a value that a person or program gave cannot be used
    │   ├── SizeError                  a picture size that the model cannot draw
    │   ├── PromptFileError            a bad line in a file of prompts
    │   ├── UnknownNameError           a sampler, model or preset that is in no table
    │   └── PolicyError                a server's rules do not allow it
    ├── WeightsError                   a weights file or folder cannot be used
    │   ├── MissingWeightsError        there is nothing at the path or hub name
    │   ├── CorruptWeightsError        the file is truncated or damaged
    │   ├── UnsafeWeightsError         the pickle holds code
    │   └── MismatchError              keys or shapes do not fit the network
    ├── NotFiniteError                 the network or the autoencoder produced NaN or infinity
    ├── OutOfMemoryError (MemoryError) the request does not fit the device
    ├── OutputError (OSError)          a result could not be written
    ├── BusyError                      a server has no room for more at this moment
    └── MissingExtraError (ImportError) an optional dependency is not installed

A message says the rule, what was given, and what would do.
"""


class PixsigmaError(Exception):
    """The root of the tree: catch this to catch everything that pixsigma raises on purpose."""


# What a person or program gave


class InputError(PixsigmaError, ValueError):
    """A value that a person or program gave cannot be used."""


class SizeError(InputError):
    """A picture size that the model cannot draw."""


class PromptFileError(InputError):
    """A bad line in a file of prompts."""


class UnknownNameError(InputError):
    """A sampler, model or preset that is in no table."""


class PolicyError(InputError):
    """A server's rules do not allow it."""


# Weights


class WeightsError(PixsigmaError):
    """A weights file or folder cannot be used."""


class MissingWeightsError(WeightsError):
    """There is nothing at the path or hub name."""


class CorruptWeightsError(WeightsError):
    """The file is truncated or damaged."""


class UnsafeWeightsError(WeightsError):
    """The pickle holds code."""


class MismatchError(WeightsError):
    """Keys or shapes do not fit the network."""


# Running


class NotFiniteError(PixsigmaError):
    """The network or the autoencoder produced NaN or infinity."""


class OutOfMemoryError(PixsigmaError, MemoryError):
    """The request does not fit the device."""


class OutputError(PixsigmaError, OSError):
    """A result could not be written."""


class BusyError(PixsigmaError):
    """A server has no room for more at this moment; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class MissingExtraError(PixsigmaError, ImportError):
    """An optional dependency is not installed."""
