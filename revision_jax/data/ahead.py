"""Work done ahead of its use: an iterator's items made in a thread, a few at most before they are asked for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """The same items in the same order, up to `depth` of them made before they are asked for. What `items` raises is raised here, in its place.

    Memory is bounded by `depth` + 2 items. Closing the result, or leaving it, stops the thread before its next item and closes `items`; nobody polls.
    """
    made: queue.Queue = queue.Queue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        end: object = _END
        try:
            while True:
                room.acquire()
                if stopped.is_set():
                    break
                item = next(items, _END)
                if item is _END:
                    break
                made.put(item)
        except BaseException as error:  # handed to whoever asks for the item
            end = _Raised(error)
        finally:
            getattr(items, "close", lambda: None)()
            made.put(end)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            room.release()
            yield item
    finally:
        stopped.set()
        room.release()
        thread.join()


class _Raised:
    """An exception on its way from the thread."""

    def __init__(self, error: BaseException):
        self.error = error
