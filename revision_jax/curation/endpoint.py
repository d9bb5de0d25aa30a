"""A user's HTTP endpoint that answers JSON: tried again with backoff, at a limited rate, within a time, and without a word about the key.

Three things can go wrong, and they are told apart. The request itself is refused (this image is at fault: `Refused`). It fails for the moment, however often
it is tried (`Unavailable`: ask again another day). Or the endpoint is not what it was taken for, a wrong address, model or key: UserError, at once.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import itertools
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from revision_jax.curation.config import EndpointConfig
from revision_jax.errors import UserError

AGAIN = (408, 425, 429)  # and all 5xx
WRONG = {401: "the key is wrong or missing", 403: "the key does not allow this", 404: "no such address or model", 405: "no such address", 407: "a proxy's"}
LARGEST = 16 << 20  # bytes of an answer
T = TypeVar("T")


class Refused(Exception):
    """The endpoint will not answer this, however often it is asked."""


class Unavailable(Exception):
    """No answer for now."""


class _Failed(Exception):
    """One try failed; `wait_s`: how long the server says to wait."""

    def __init__(self, what: str, wait_s: float | None = None):
        super().__init__(what)
        self.wait_s = wait_s


def ask_all(ask: Callable[[Any], T], items: Sequence[Any], workers: int, give_up: int) -> Iterator[tuple[int, T | Refused | Unavailable]]:
    """(number, `ask(item)`) of all items, `workers` at once, as they come; an item's Refused or Unavailable stands for its answer.

    Raises what else `ask` raises, and UserError after `give_up` items in a row that got no answer; what was not asked by then is not asked any more.
    """
    barren = 0
    left, asked = iter(enumerate(items)), {}
    with ThreadPoolExecutor(workers) as pool:
        while True:
            for number, item in itertools.islice(left, workers - len(asked)):
                asked[pool.submit(ask, item)] = number
            if not asked:
                return
            for future in sorted(wait(asked, return_when=FIRST_COMPLETED).done, key=asked.get):
                try:
                    answer, barren = future.result(), 0
                except (Refused, Unavailable) as error:
                    answer, barren = error, barren + 1
                yield asked.pop(future), answer
                if barren >= give_up:
                    raise UserError(f"{barren} images in a row got no answer, the last because of: {answer}; what was answered is kept: start again later")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to wherever the server says."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """One address, from any number of threads. All of them together keep to `config.rate`."""

    def __init__(self, url: str, config: EndpointConfig):
        """url: what paths are put behind, such as http://127.0.0.1:8000/v1. Raises UserError for what is no such address, and for a key that cannot be sent."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(f"{url}: not an address such as https://host/v1")
        if parts.username is not None or parts.password is not None:
            raise UserError(f"{parts.hostname}: the address holds a name or a password; put the key into the environment variable {config.key_env}")
        self.url, self.config = url.rstrip("/"), config
        self._key = os.environ.get(config.key_env, "").strip()
        if not all(" " < letter <= "~" for letter in self._key):
            raise UserError(f"{config.key_env}: holds letters that no key has")
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._turn, self._next = threading.Lock(), 0.0
        self._random = random.Random()
        self.stopped = threading.Event()  # set: nothing is tried again

    @property
    def identity(self) -> str:
        """What the answers depend on as far as it is known here: address and picture size; 16 hex digits."""
        return hashlib.blake2b(json.dumps([self.url, self.config.side, self.config.quality]).encode(), digest_size=8).hexdigest()

    def post(self, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """`read` of the JSON that the endpoint answers to a JSON body.

        An answer that is no JSON, or that `read` cannot use (LookupError, TypeError, ValueError, AttributeError), is tried again; `read` may raise Refused.
        Raises Refused, Unavailable or UserError, see above.
        """
        data = json.dumps(body).encode("utf-8")
        for number in range(1, self.config.tries + 1):
            self._wait_for_turn()
            try:
                return self._once(path, data, read)
            except _Failed as failure:
                last = number == self.config.tries or self.stopped.wait(self._pause(number, failure.wait_s))
                if last:
                    raise Unavailable(f"{self._host}: {failure}; tried {number} times") from None
        raise AssertionError("unreachable")

    @property
    def _host(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc

    def _pause(self, number: int, asked_s: float | None) -> float:
        """Exponential backoff with jitter: between half and all of backoff x 2^(number - 1), or what the server asks for; seconds."""
        pause = self.config.backoff_s * 2 ** (number - 1) * self._random.uniform(0.5, 1.0) if asked_s is None else asked_s
        return min(pause, self.config.longest_wait_s)

    def _wait_for_turn(self) -> None:
        if not self.config.rate:
            return
        with self._turn:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + 1.0 / self.config.rate
        self.stopped.wait(mine - now)

    def _once(self, path: str, data: bytes, read: Callable[[Any], T]) -> T:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "revision-jax"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url + path, data, headers, method="POST")
        ends = time.monotonic() + self.config.timeout_s
        try:
            with self._opener.open(request, timeout=self.config.timeout_s) as response:
                answer = self._body(response, ends)
        except urllib.error.HTTPError as error:
            with error:
                self._status(error, ends)
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            raise _Failed(self._clean(getattr(error, "reason", None) or error)) from None
        try:
            return read(json.loads(answer))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _Failed(f"an answer that makes no sense ({self._clean(error)})") from None

    @staticmethod
    def _body(response: Any, ends: float) -> bytes:
        """All of an answer. A socket's timeout is between bytes; this one is for the whole."""
        pieces, size = [], 0
        while piece := response.read1(1 << 16):
            pieces.append(piece)
            size += len(piece)
            if time.monotonic() > ends:
                raise TimeoutError("timed out")
            if size > LARGEST:
                raise OSError(f"an answer of more than {LARGEST >> 20} MiB")
        return b"".join(pieces)

    def _status(self, error: urllib.error.HTTPError, ends: float) -> None:
        """Raises what a status other than 200 means."""
        said = b""
        with contextlib.suppress(OSError, http.client.HTTPException):
            said = self._body(error, ends)
        what = self._clean(f"HTTP {error.code} {said.decode('utf-8', 'replace')}")
        if error.code in AGAIN or error.code >= 500:
            raise _Failed(what, _seconds(error.headers.get("Retry-After")))
        if error.code < 400:
            raise UserError(f"{self.url}: {what}; it leads elsewhere: give the address that it leads to")
        if error.code in WRONG:
            raise UserError(f"{self.url}: {what}; {WRONG[error.code]}")
        raise Refused(what)

    def _clean(self, said: Any) -> str:
        """One line, without the key, which a server may send back."""
        text = " ".join(str(said).split())
        return (text.replace(self._key, "***") if self._key else text)[:200]


def _seconds(header: str | None) -> float | None:
    """Retry-After: seconds, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
        return None
