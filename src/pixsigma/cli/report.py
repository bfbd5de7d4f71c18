"""How the command line ends: one clear line on stderr and an exit code, no traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer

from pixsigma.errors import InputError, OutputError, PixsigmaError, WeightsError

DEBUG_VARIABLE = "PIXSIGMA_DEBUG"
"""Environment variable that brings tracebacks back."""

UNEXPECTED, INPUT, WEIGHTS, RUNNING, OUTPUT = 1, 2, 3, 4, 5
STOPPED, PIPE_CLOSED = 130, 141  # 128 + the signal's number, as shells count


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def exit_code(error: BaseException) -> int:
    """What the process ends with after this error."""
    match error:
        case KeyboardInterrupt():
            return STOPPED
        case BrokenPipeError():
            return PIPE_CLOSED
        case InputError():
            return INPUT
        case WeightsError():
            return WEIGHTS
        case OutputError():
            return OUTPUT
        case PixsigmaError() | MemoryError():
            return RUNNING
    return UNEXPECTED


def say(message: str) -> None:
    """One line on stderr, so that stdout holds results only."""
    print("pixsigma:", " ".join(message.split()), file=sys.stderr)


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors of ours, Ctrl-C and a closed pipe into `typer.Exit`; others pass."""
    try:
        yield
    except (PixsigmaError, MemoryError, KeyboardInterrupt, BrokenPipeError) as error:
        if debugging():
            raise
        explain(error)
        raise typer.Exit(exit_code(error)) from None


def explain(error: BaseException) -> None:
    """Say what happened, and how to learn more where it is not clear."""
    match error:
        case BrokenPipeError():
            close_pipe()
        case KeyboardInterrupt():
            say(f"stopped; {error if error.args else 'no half-written file is left'}")
        case PixsigmaError():
            say(str(error))
        case MemoryError():
            say("this machine has too little memory; try a smaller size or fewer pictures")
        case _:
            kind = type(error).__name__
            say(f"unexpected {kind}: {error} (`pixsigma --debug …` shows where; please report it)")


def close_pipe() -> None:
    """Send what is left to nowhere; else the interpreter complains when it flushes at its end."""
    for stream in (sys.stdout, sys.stderr):
        _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # a stand-in without a file, as in tests
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
