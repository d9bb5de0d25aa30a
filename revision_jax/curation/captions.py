"""Who writes captions: our own Chat with a VideoLLaMA3 checkpoint, or a model behind any OpenAI-compatible endpoint.

Named on the command line by what they are: a checkpoint folder, or MODEL@URL, such as OpenGVLab/InternVL2-8B@http://127.0.0.1:8000/v1.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from revision_jax.curation.config import CaptionConfig
from revision_jax.curation.endpoint import Endpoint, Refused
from revision_jax.curation.pictures import Picture, data_url
from revision_jax.data.datasets.schema import encodes
from revision_jax.data.video import content_hash
from revision_jax.errors import UserError

TAGS = ("<image>", "<video>")  # VideoLLaMA3's placeholders: a caption that holds one would ask for another picture


@runtime_checkable
class Captioner(Protocol):
    """identity: what its captions depend on, 16 hex digits; workers: how many captions may be asked for at once."""

    identity: str
    workers: int

    def caption(self, path: Path, picture: Picture) -> str:
        """A caption that `clean` lets through. Raises Refused where this image gets none, Unavailable where it gets none for now."""
        ...

    def stop(self) -> None:
        """Nothing that fails from now on is tried again."""
        ...


def clean(text: Any) -> str:
    """A caption without blanks at its ends. Raises Refused for one that cannot be trained on."""
    if not isinstance(text, str) or not text.strip():
        raise Refused("the caption is empty")
    if any(tag in text for tag in TAGS) or not encodes(text):
        raise Refused("the caption holds a placeholder or half of a surrogate pair")
    return text.strip()


class EndpointCaptioner:
    """A model behind POST URL/chat/completions; the image goes as a data URL."""

    def __init__(self, model: str, endpoint: Endpoint, config: CaptionConfig):
        self.model, self.endpoint, self.config = model, endpoint, config
        self.workers = endpoint.config.parallel
        self.identity = _digest([model, endpoint.identity, config.prompt, config.tokens])

    def caption(self, path: Path, picture: Picture) -> str:
        image = {"type": "image_url", "image_url": {"url": data_url(picture, self.endpoint.config.side, self.endpoint.config.quality)}}
        content = [image, {"type": "text", "text": self.config.prompt}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": self.config.tokens, "temperature": 0}
        return self.endpoint.post("/chat/completions", body, _answer)

    def stop(self) -> None:
        self.endpoint.stopped.set()


def _answer(value: Any) -> str:
    """The caption of an answer of the chat completions API. Raises LookupError or TypeError for what is none."""
    choice = value["choices"][0]
    ended = choice.get("finish_reason")
    if ended not in (None, "stop", "eos", "eos_token"):
        raise Refused("the caption is longer than its limit of tokens" if ended == "length" else f"the model stopped because of {ended!r:.40}")
    text = choice["message"]["content"]
    if text is not None and not isinstance(text, str):
        raise TypeError(f"content must be text, is {text!r:.40}")
    return clean(text)


class ChatCaptioner:
    """Our Chat; one image is a conversation. The likeliest token each time, so the same image gets the same caption."""

    workers = 1

    def __init__(self, folder: str | Path, config: CaptionConfig):
        self.folder, self.config = Path(folder), config
        self.identity = _digest([_weights(self.folder), config.prompt, config.tokens])
        self._lock, self._chat = threading.Lock(), None

    def caption(self, path: Path, picture: Picture) -> str:
        with self._lock:
            if self._chat is None:
                from revision_jax.chat.chat import Chat

                self._chat = Chat.from_pretrained(self.folder)
            self._chat.reset()
            try:
                text = self._chat.say(self.config.prompt, images=[path], max_new_tokens=self.config.tokens)
            except UserError as error:
                raise Refused(str(error)) from None  # a file that its own processor cannot use
            complete = self._chat.turns[-1].complete
        if not complete:
            raise Refused("the caption is longer than its limit of tokens")
        return clean(text)

    def stop(self) -> None:
        pass  # it tries nothing twice


def _weights(folder: Path) -> list[str]:
    """Hashes of a model's files, whatever their layout."""
    files = sorted(path for pattern in ("*.json", "*.safetensors", "*.bin") for path in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder}: holds no checkpoint")
    return [content_hash(path) for path in files]


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode("utf-8"), digest_size=8).hexdigest()


def captioner(named: str, config: CaptionConfig, endpoint: Callable[[str], Endpoint]) -> Captioner:
    """The captioner of a name (see above). endpoint: url -> Endpoint, the same one for the same url. Raises UserError for a name that is neither."""
    model, at, url = named.rpartition("@")
    if at and url.startswith(("http://", "https://")):
        if not model:
            raise UserError(f"{named}: name the model before the address, as MODEL@{url}")
        return EndpointCaptioner(model, endpoint(url), config)
    if not Path(named).is_dir():
        raise UserError(f"{named}: neither a folder with a checkpoint nor MODEL@URL, such as InternVL2-8B@http://127.0.0.1:8000/v1")
    return ChatCaptioner(named, config)

