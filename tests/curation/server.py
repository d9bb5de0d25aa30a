"""A real HTTP server on 127.0.0.1 that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


class Asked:
    """One request."""

    def __init__(self, path: str, headers: dict[str, str], body: dict[str, Any]):
        self.path, self.headers, self.body = path, headers, body

    @property
    def text(self) -> str:
        return self.body["messages"][0]["content"][1]["text"]

    @property
    def picture(self) -> np.ndarray:
        """The image that was sent, of either API."""
        url = self.body["image"] if "image" in self.body else self.body["messages"][0]["content"][0]["image_url"]["url"]
        head, data = url.split(",", 1)
        assert head == "data:image/jpeg;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


class Server:
    """asked: all requests; most: how many were under way at once."""

    def __init__(self, answer: Callable[[Asked, int], tuple]):
        """answer(request, its number) -> (status, body[, headers]); a body that is neither bytes nor None goes as JSON, None closes the connection."""
        self.asked: list[Asked] = []
        self.most = self._now = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    number = len(owner.asked)
                    owner.asked.append(Asked(self.path, dict(self.headers), body))
                    owner._now += 1
                    owner.most = max(owner.most, owner._now)
                try:
                    status, said, *rest = answer(owner.asked[number], number)
                finally:  # before the client has its answer, and may ask again
                    with owner.lock:
                        owner._now -= 1
                if said is None:
                    return
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in (rest[0] if rest else {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def serving(answer: Callable[[Asked, int], tuple]) -> contextlib.AbstractContextManager[Server]:
    return Server(answer).running()


def completion(text: Any, reason: str | None = "stop") -> dict[str, Any]:
    """An answer of the chat completions API."""
    return {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}]}
