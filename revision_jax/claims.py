"""One process at a time works on a result: the claim is a lock that the operating system holds, so that it ends with the process, however that dies.

No claim goes stale and none has to be timed. Works between the hosts of a shared file system that keeps locks (NFS, Lustre, CephFS do).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from revision_jax.errors import UserError


@contextlib.contextmanager
def claim(path: str | os.PathLike, wait: bool = False) -> Iterator[bool]:
    """Claims `path` while the context lasts; where another process has it, gives False at once, or waits for its turn. The lock file `.NAME.lock` beside it is
    there meanwhile.

    Raises UserError where the folder cannot be written or its file system keeps no locks.
    """
    lock = Path(path).with_name(f".{Path(path).name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(lock, wait)
    except OSError as error:
        raise UserError(f"{path}: cannot be claimed ({error.strerror}); the folder must be writable, on a file system that keeps locks") from None
    try:
        yield file is not None
    finally:
        if file is not None:
            lock.unlink(missing_ok=True)  # before the lock goes: whoever opened this file meanwhile finds that it is not the one at this path any more
            os.close(file)


def _locked(lock: Path, wait: bool) -> int | None:
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.exists(lock) and os.path.samestat(os.fstat(file), os.stat(lock)):
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except FileNotFoundError:
            pass  # removed between the two looks
        except BaseException:
            os.close(file)
            raise
        os.close(file)
