"""How a command ends: user errors are one line, not a traceback."""

import logging
import sys
from collections.abc import Callable, Sequence


def run_cli(main: Callable[[Sequence[str] | None], int | None]) -> int:
    """Runs ``main`` on the command line and returns the exit status.

    A ValueError or OSError is the user's to mend: its message goes to stderr as
    ``error: ...`` and the status is 2. Anything else is our bug and keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return main(None) or 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
