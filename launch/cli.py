"""What all mains share: bad input becomes one line and exit status 2, Ctrl-C becomes 130; a traceback is for bugs alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from revision_jax.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress


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


def share(text: str) -> tuple[int, int]:
    """(I, N) of an option --shard I/N. Raises UserError for another form."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise UserError(f"--shard: {text!r} is not I/N, such as 0/4")
    return int(number), int(count)


@contextmanager
def counting_bar(unit: str = "left", speed_estimate_period: float = 30.0) -> Iterator[Progress | None]:
    """A bar of things done, of how many, with the time left; None but on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=speed_estimate_period) as bar:
        yield bar
