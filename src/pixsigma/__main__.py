"""`python -m pixsigma`, which is `pixsigma`."""

import sys
import warnings

from pixsigma.cli import app
from pixsigma.cli.report import debugging, exit_code, explain, say


def main() -> None:
    """Run the command line; whatever happens ends with one line and an exit code."""
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:
        if debugging():
            raise
        explain(error)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
