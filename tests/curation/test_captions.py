"""What a captioner is sent, what counts as a caption, and our own Chat as one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from revision_jax.chat import engine
from revision_jax.curation.captions import ChatCaptioner, EndpointCaptioner, captioner, clean
from revision_jax.curation.config import CaptionConfig, EndpointConfig
from revision_jax.curation.endpoint import Endpoint, Refused, Unavailable
from revision_jax.errors import UserError
from tests.chat.conftest import arrays, model, tokenizer, weights  # noqa: F401  fixtures
from tests.curation.conftest import picture
from tests.curation.server import completion, serving

SHOWN = picture(0)
CONFIG = CaptionConfig("What is it?", 33)


def made(server, **options):
    return EndpointCaptioner("some/model", Endpoint(server.url, EndpointConfig(tries=2, backoff_s=0.01, **options)), CONFIG)


def test_the_request_is_one_of_the_chat_completions_api(tmp_path):
    with serving(lambda asked, number: (200, completion("  A red square.\n"))) as server:
        assert made(server, side=48).caption(tmp_path, SHOWN) == "A red square."
        (asked,) = server.asked
    assert asked.path == "/v1/chat/completions" and asked.text == "What is it?"
    assert {name: asked.body[name] for name in ("model", "max_tokens", "temperature")} == {"model": "some/model", "max_tokens": 33, "temperature": 0}
    (message,) = asked.body["messages"]
    assert message["role"] == "user" and [part["type"] for part in message["content"]] == ["image_url", "text"]
    small = np.asarray(Image.fromarray(SHOWN).resize((48, 40), Image.Resampling.BICUBIC)).astype(int)
    assert asked.picture.shape == (40, 48, 3) and np.abs(asked.picture - small).mean() < 8


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (completion(""), Refused, "empty"), (completion(None), Refused, "empty"), (completion("cut of", "length"), Refused, "longer than its limit"),
        (completion("no", "content_filter"), Refused, "stopped because of 'content_filter'"), (completion("see <image>"), Refused, "placeholder"),
        (completion("\ud800"), Refused, "surrogate"), ({"choices": []}, Unavailable, "makes no sense"),
        (completion(["x"]), Unavailable, "content must be text"),
        ({"error": "busy"}, Unavailable, "makes no sense"), ({"choices": [None]}, Unavailable, "makes no sense"),
    ],
)  # fmt: skip
def test_what_is_no_caption(tmp_path, answer, kind, said):
    with serving(lambda asked, number: (200, answer)) as server, pytest.raises(kind, match=said):
        made(server).caption(tmp_path, SHOWN)


def test_an_ending_without_a_reason_is_fine(tmp_path):
    with serving(lambda asked, number: (200, completion("A dog.", None))) as server:
        assert made(server).caption(tmp_path, SHOWN) == "A dog."


def test_captions_of_a_list_are_held_to_the_same():
    assert clean(" Ein Häuschen ") == "Ein Häuschen"
    for text in ("", " \n", None, "a <video>", "\udfff"):
        with pytest.raises(Refused):
            clean(text)


def test_names_and_identities(tmp_path):
    ask = lambda url: Endpoint(url, EndpointConfig())
    one = captioner("a@b/model@http://127.0.0.1:8000/v1/", CONFIG, ask)
    assert (one.model, one.endpoint.url) == ("a@b/model", "http://127.0.0.1:8000/v1")
    others = [captioner("other@http://127.0.0.1:8000/v1", CONFIG, ask), captioner("a@b/model@http://127.0.0.1:8000/v1", CaptionConfig("What?", 33), ask)]
    assert len({maker.identity for maker in (one, *others)}) == 3
    wrong = ("@http://host/v1", "name the model before the address"), (str(tmp_path / "no"), "neither a folder"), (str(tmp_path), "holds no checkpoint")
    for name, said in wrong:
        with pytest.raises(UserError, match=said):
            captioner(name, CONFIG, ask)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory, arrays, weights, tokenizer):  # noqa: F811
    folder = tmp_path_factory.mktemp("chat")
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(str(arrays["config"]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}), encoding="utf-8")
    tokenizer.save(folder)
    return folder


@pytest.mark.slow
def test_our_own_chat_writes_captions(chat_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "CHUNKS", (16, 64))
    monkeypatch.setattr(engine, "SLOTS", 128)
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(picture(number, 48, 48)).save(paths[-1])
    maker = captioner(str(chat_folder), CaptionConfig("What is it?", 6), lambda url: None)
    assert isinstance(maker, ChatCaptioner) and maker.workers == 1
    said = []
    for path in (*paths, paths[0]):
        try:
            caption = maker.caption(path, SHOWN)
            assert caption == maker._chat.turns[0].answer.strip() and maker._chat.turns[0].complete
        except Refused as error:  # random weights seldom end by themselves
            assert "limit" in str(error) and not maker._chat.turns[0].complete
        said.append(maker._chat.turns[0].answer)
        assert len(maker._chat.turns) == 1  # one image is a conversation
    assert said[0] == said[2] != said[1]
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(Refused, match="not readable as an image"):
        maker.caption(tmp_path / "bad.png", SHOWN)
