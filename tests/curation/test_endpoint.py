"""The HTTP client against a real server that answers well, badly, slowly or not at all."""

from __future__ import annotations

import email.utils
import socket
import threading
import time

import pytest

from revision_jax.curation.config import EndpointConfig
from revision_jax.curation.endpoint import Endpoint, Refused, Unavailable, ask_all
from revision_jax.errors import UserError
from tests.curation.server import serving

KEY = "sk-secret-0123456789"
QUICK = {"backoff_s": 0.01, "timeout_s": 5.0, "tries": 3}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def endpoint(server, **options):
    return Endpoint(server.url, EndpointConfig(**{**QUICK, **options}))


def post(server, **options):
    return endpoint(server, **options).post("/x", {"a": 1}, lambda answer: answer["x"])


def test_the_key_goes_along_and_the_answer_is_read():
    with serving(lambda asked, number: (200, {"x": "ä"})) as server:
        assert post(server) == "ä"
        (asked,) = server.asked
        assert asked.path == "/v1/x" and asked.body == {"a": 1} and asked.headers["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(lambda asked, number: (200, {"x": 1})) as server:
        assert post(server) == 1 and "Authorization" not in server.asked[0].headers


@pytest.mark.parametrize(
    "bad",
    [
        (429, {"error": "slow down"}), (500, b"oops"), (503, b""), (200, b"<html>"), (200, b"\xff"), (200, {"y": 1}), (200, [1]), (200, b"[" * 100_000),
        (0, None),
    ],
)  # fmt: skip
def test_what_fails_for_the_moment_is_tried_again(bad):
    with serving(lambda asked, number: bad if number < 2 else (200, {"x": 7})) as server:
        assert post(server) == 7 and len(server.asked) == 3
    with serving(lambda asked, number: bad) as server:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d+: .*; tried 3 times"):
            post(server)
        assert len(server.asked) == 3


def test_the_server_says_how_long_to_wait():
    for header in ("0.3", email.utils.formatdate(time.time() + 2, usegmt=True)):
        with serving(lambda asked, number, header=header: (200, {"x": 1}) if number else (429, b"", {"Retry-After": header})) as server:
            began = time.monotonic()
            assert post(server) == 1 and time.monotonic() - began >= 0.29
            assert post(server, longest_wait_s=0.01) == 1


def test_the_wait_doubles_and_has_a_limit():
    one = Endpoint("http://127.0.0.1:1/v1", EndpointConfig(backoff_s=1.0, longest_wait_s=6.0))
    for number, low, high in ((1, 0.5, 1.0), (2, 1.0, 2.0), (3, 2.0, 4.0), (9, 6.0, 6.0)):
        assert all(low <= one._pause(number, None) <= high for _ in range(50))
    assert one._pause(1, 3600.0) == 6.0


def test_a_slow_answer_is_given_up():
    with serving(lambda asked, number: (time.sleep(1.0), (200, {"x": 1}))[1]) as server:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="timed out; tried 1 times"):
            post(server, timeout_s=0.2, tries=1)
        assert time.monotonic() - began < 0.8


def test_an_answer_that_drips_is_given_up():
    """Each byte comes in time, but not the last one."""
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        connection.recv(1 << 16)
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.05)
        except OSError:
            pass
        connection.close()

    threading.Thread(target=drip, daemon=True).start()
    one = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", EndpointConfig(timeout_s=0.4, tries=1))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="timed out"):
        one.post("", {}, lambda answer: answer)
    assert time.monotonic() - began < 2
    listener.close()


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable, match=r"refused.*; tried 2 times"):
        Endpoint(f"http://127.0.0.1:{port}/v1", EndpointConfig(tries=2, backoff_s=0.01)).post("", {}, lambda answer: answer)


def test_what_is_at_fault():
    with serving(lambda asked, number: (400, {"error": "image too odd"})) as server:
        with pytest.raises(Refused, match=r"HTTP 400 .*image too odd"):
            post(server)
        assert len(server.asked) == 1
    for status, said in ((401, "the key is wrong or missing"), (404, "no such address or model")):
        with serving(lambda asked, number, status=status: (status, b"no")) as server, pytest.raises(UserError, match=said):
            post(server)


def test_a_redirect_is_not_followed_with_the_key():
    with serving(lambda asked, number: (200, {"x": 1})) as other:
        for status in (301, 302, 307, 308):
            answer = lambda asked, number, status=status: (status, b"", {"Location": other.url})
            with serving(answer) as server, pytest.raises(UserError, match="leads elsewhere"):
                post(server)
        assert not other.asked


def test_the_key_is_in_no_message_even_if_the_server_sends_it_back(monkeypatch):
    echo = f"key {KEY} is not good".encode()
    for status, kind in ((400, Refused), (401, UserError), (500, Unavailable)):
        with serving(lambda asked, number, status=status: (status, b"x" * 190 + echo)) as server:
            with pytest.raises(kind) as raised:
                post(server, tries=1)
            shown = str(raised.value)
            assert KEY not in shown and KEY[:8] not in shown
    with serving(lambda asked, number: (200, {"x": 1})) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-broken\r\nX-Evil: 1")
        with pytest.raises(UserError, match="OPENAI_API_KEY: holds letters that no key has") as raised:
            post(server)
        assert "sk-broken" not in str(raised.value) and not server.asked


@pytest.mark.parametrize("url", ["ftp://host/v1", "host/v1", "http://", "http://host/v1?key=1"])
def test_no_address(url):
    with pytest.raises(UserError, match="not an address such as https://host/v1"):
        Endpoint(url, EndpointConfig())


def test_an_address_with_a_password_is_refused_without_saying_it():
    with pytest.raises(UserError, match="put the key into the environment variable OPENAI_API_KEY") as raised:
        Endpoint("https://me:hunter2@host/v1", EndpointConfig())
    assert "hunter2" not in str(raised.value)


def test_rate_and_parallel_requests_are_limited():
    with serving(lambda asked, number: (time.sleep(0.05), (200, {"x": 1}))[1]) as server:
        one = endpoint(server, rate=20.0)
        began = time.monotonic()
        done = list(ask_all(lambda item: one.post("", {}, lambda answer: item), list("abcdefghi"), 3, 16))
        assert time.monotonic() - began >= 8 / 20 and server.most <= 3
        assert sorted(done) == list(enumerate("abcdefghi"))
    with serving(lambda asked, number: (time.sleep(0.1), (200, {"x": 1}))[1]) as server:
        one = endpoint(server)
        list(ask_all(lambda item: one.post("", {}, lambda answer: item), list("abcdefgh"), 4, 16))
        assert server.most == 4


def test_answers_refusals_and_failures_stand_side_by_side():
    def ask(item):
        if item == "bad":
            raise Refused("no")
        if item == "down":
            raise Unavailable("later")
        return item.upper()

    got = dict(ask_all(ask, ["a", "bad", "down", "b"], 2, 3))
    assert (got[0], got[3], str(got[1]), str(got[2])) == ("A", "B", "no", "later") and isinstance(got[1], Refused)


def test_too_many_in_a_row_without_an_answer_end_it():
    asked = []

    def ask(item):
        asked.append(item)
        raise Unavailable("HTTP 503")

    with pytest.raises(UserError, match=r"5 images in a row got no answer, the last because of: HTTP 503; what was answered is kept"):
        list(ask_all(ask, list(range(100)), 1, 5))
    assert len(asked) < 20
    with pytest.raises(UserError, match="wrong key"):  # what is no fault of an image ends it at once
        list(ask_all(lambda item: (_ for _ in ()).throw(UserError("wrong key")), [1, 2], 1, 5))


def test_a_stopped_endpoint_tries_nothing_twice():
    with serving(lambda asked, number: (500, b"")) as server:
        one = endpoint(server, tries=5, backoff_s=30.0)
        one.stopped.set()
        with pytest.raises(Unavailable, match="tried 1 times"):
            one.post("", {}, lambda answer: answer)
        assert len(server.asked) == 1
