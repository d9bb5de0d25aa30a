"""The command line of a conversation: one answer, several turns from a pipe, and what it says about bad input (one line, status 2)."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from launch import chat, cli
from tests.chat.conftest import arrays, tokenizer, weights, write_film  # noqa: F401  fixtures


@pytest.fixture(scope="module")
def folder(tmp_path_factory, arrays, weights, tokenizer):  # noqa: F811
    """A tiny random model as transformers writes it."""
    out = tmp_path_factory.mktemp("model")
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(str(arrays["config"]), encoding="utf-8")
    (out / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}), encoding="utf-8")
    (out / "preprocessor_config.json").write_text(json.dumps({"min_tokens": 1, "max_tokens": 48, "max_frames": 3}), encoding="utf-8")
    tokenizer.save(out)
    return out


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("video") / "film.mp4")


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: chat.main([str(a) for a in arguments]))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said
    return said


def test_an_answer_and_a_conversation(folder, film, capsys, monkeypatch):
    common = ("--checkpoint", folder, "--dtype", "float32", "--max-new-tokens", 4, "--video", film, "--fps", 1, "--max-frames", 2)
    chat.main([str(a) for a in (*common, "--prompt", "what is here?")])
    answer = capsys.readouterr().out
    assert answer.endswith("\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"what is here?\n\n/reset\n/video {film}\nwhat is here?\nand then?\n"))
    chat.main([str(a) for a in common])
    said = capsys.readouterr().out
    assert said.startswith(answer + answer) and len(said) > len(answer + answer)


def test_what_is_looked_at_follows_the_flags(folder, film, tmp_path, capsys):
    """A film of 4 s, 32 x 32 pixels: a frame is 4 x 4 tokens of 8 x 8 pixels. The budget's error says what would be shown."""
    still = tmp_path / "still.png"
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(still)
    told = lambda *flags: refusal(capsys, "--checkpoint", folder, "--prompt", "what?", "--token-budget", 1, *flags)
    assert "film.mp4 32 (2 frames of 16)" in told("--video", film, "--fps", 0.5)  # every other second
    assert "film.mp4 16, text" in told("--video", film, "--fps", 4, "--max-frames", 1)
    assert "film.mp4 12 (3 frames of 4)" in told("--video", film, "--max-pixels", 16 * 16)
    few = told("--image", still, "--max-pixels", 16 * 16, "--max-new-tokens", 7)
    assert int(re.search(r"still\.png (\d+),", few)[1]) <= 16 and "answer 7)" in few  # tokens of 4 x 4 pixels: images are not merged


def test_answers_are_streamed(folder, monkeypatch, capsys):
    """Every piece is on the screen before the next one is made."""
    shown = []
    monkeypatch.setattr(chat, "print", lambda *words, **how: shown.append((words, how.get("flush"))), raising=False)
    chat.show(iter(["one ", "two"]))
    assert shown == [(("one ",), True), (("two",), True), ((), True)]


def test_bad_input(folder, film, tmp_path, capsys):
    common = ("--checkpoint", folder, "--prompt", "what?")
    assert "no such file" in refusal(capsys, *common, "--video", tmp_path / "none.mp4")
    assert "none.png" in refusal(capsys, *common, "--image", tmp_path / "none.png")
    assert "--fps: must be above 0" in refusal(capsys, *common, "--fps", 0)
    assert "top_p must lie in (0, 1]" in refusal(capsys, *common, "--top-p", 2)
    assert "no such checkpoint folder" in refusal(capsys, "--checkpoint", tmp_path / "none", "--prompt", "what?")
    assert "--checkpoint" in refusal(capsys, "--prompt", "what?")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("<|im_", "<|no_"), encoding="utf-8")
    told = refusal(capsys, "--checkpoint", bare, "--prompt", "what?")
    assert "lacks the special tokens <|im_start|>, <|im_end|>" in told and "bare: no weights there" in told
    wanted = refusal(capsys, *common, "--video", film, "--token-budget", 100)
    assert "film.mp4 48 (3 frames of 16)" in wanted and "the budget is 100" in wanted
