"""What all mains share: bad input becomes one line and exit status 2, Ctrl-C becomes 130; a traceback is for bugs alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from revision_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def run(main: Callable[[], int | None]) -> None:
    """Calls `main` and leaves the process with its exit status (None = 0)."""
    from revision_jax.config import ConfigError

    try:
        status = main() or 0
    except (UserError, ConfigError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
