"""The folder in which a `Grounder` keeps features: as large as it may be, shared by any number of processes.

A store appears whole or not at all (`data/features.py`), under a name that tells the film's content, the encoder and the rate. One process makes it, others
that want the same meanwhile wait for it. Whoever has made one drops those that were used longest ago, until the rest is within the limit; a process that
reads such a one goes on reading, because a file lives as long as it is open.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from revision_jax.claims import claim
from revision_jax.data.features import FeatureStore

LIMIT = 20 * 10**9  # bytes: about a thousand hours for the shipped model, thirty for an encoder with 84 tokens of 1,152 numbers a frame
SUFFIX = ".features"


def kept(path: Path, read: Callable[[], FeatureStore | None], make: Callable[[], FeatureStore], limit: int = LIMIT) -> tuple[FeatureStore, bool]:
    """(the store at `path`, whether it was made now). read: opens it, None where it is not there or of no use; make: writes it there.

    Raises UserError where the folder cannot be written.
    """
    store, made = read(), False
    if store is None:
        with claim(path, wait=True):
            store = read()  # another process may have made it meanwhile
            if store is None:
                for left in path.parent.glob(f".{path.name}.*.partial"):  # of a process that was killed: nobody else is at this store
                    left.unlink(missing_ok=True)
                store, made = make(), True
    with contextlib.suppress(OSError):  # a folder that can only be read
        os.utime(path)  # used just now
    if made:
        trim(path.parent, limit, path)
    return store, made


def trim(folder: Path, limit: int, spare: Path | None = None) -> list[Path]:
    """Removes what was used longest ago until the rest, `spare` included, takes at most `limit` bytes; returns what went. `spare` stays whatever its size."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another process removed it just now
            status = path.stat()
            found.append((path != spare, -status.st_mtime_ns, status.st_size, path))
    total, gone = 0, []
    for removable, _, size, path in sorted(found):
        total += size
        if removable and total > limit:
            with contextlib.suppress(OSError):
                path.unlink()
                gone.append(path)
    return gone
