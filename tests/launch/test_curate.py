"""The command: killed again and again with an endpoint under way, its errors in one line, and no key anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss")

from launch import cli, curate
from tests.curation.conftest import images, towers_folder  # noqa: F401  fixtures
from tests.curation.server import completion, serving

ROOT = Path(__file__).parents[2]
KEY = "sk-secret-0123456789"
FIELDS = ["similarity=0", "block=2", "endpoint.parallel=2", "endpoint.backoff_s=0.01"]
RESULTS = ("captions/coarse.jsonl", "captions/short.jsonl", "captions/detailed.jsonl", "dropped.jsonl", "report.json")


def arguments(images, towers_folder, out, *more):  # noqa: F811
    captions = Path(images).parent / "captions.jsonl"
    return [str(x) for x in (images, "--captions", captions, "--checkpoint", towers_folder, "--out", out, *FIELDS, *more)]


def said(asked):
    return f"{asked.text} {int(asked.picture.astype(np.int64).sum()) % 9973}"


@pytest.mark.slow
def test_killed_by_the_system_at_every_answer_it_ends_with_the_same_files(images, towers_folder, tmp_path):  # noqa: F811
    process = [None]

    def answer(asked, number):
        if process[0] is not None and number % 4 == 3:
            process[0].send_signal(signal.SIGKILL)
        return 200, completion(said(asked))

    with serving(answer) as server:
        models = ["--short", f"m@{server.url}", "--detailed", f"m@{server.url}"]
        assert curate.main(arguments(images, towers_folder, tmp_path / "whole", *models)) == 0
        whole = len(server.asked)
        server.asked.clear()
        command = [sys.executable, "-m", "launch.curate", *arguments(images, towers_folder, tmp_path / "killed", *models)]
        runs = 0
        while runs < 20:
            runs += 1
            process[0] = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL)
            if process[0].wait() == 0:
                break
        counts = Counter((asked.text, said(asked)) for asked in server.asked)
    assert runs >= 3 and all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes() for name in RESULTS)
    # Asked twice is only what was under way when a kill came: two at a time.
    assert len(counts) == whole and sum(counts.values()) - whole <= 2 * (runs - 1)


def test_the_key_is_nowhere(images, towers_folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda asked, number: (500 if number % 2 else 400, f"your key {KEY} is fine, but".encode())) as server:
        status = curate.main(arguments(images, towers_folder, tmp_path / "out", "--short", f"m@{server.url}", "endpoint.tries=1", "endpoint.give_up=99"))
        assert status == 1 and server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    out = capsys.readouterr()
    assert "failed: " in out.err and "HTTP 500 your key *** is fine" in out.err and KEY not in out.err + out.out
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_what_is_told(images, towers_folder, tmp_path, capsys):  # noqa: F811
    assert curate.main(arguments(images, towers_folder, tmp_path / "out")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "7 images" and lines[-1] == "  captions/coarse.jsonl: 5"
    assert any(line.split() == ["ratio", "7", "came,", "1", "went:", "1", "ratio"] for line in lines)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["kept"] == {"coarse.jsonl": 5} and "endpoint" not in report["config"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["similarity=2"], "similarity: is a probability"), (["sharpness=2"], "sharpness: unknown field"),
        (["--short", "nowhere"], "nowhere: neither a folder"), (["--captions", "no.jsonl"], "no.jsonl: no such file"),
        (["--aesthetic", "nothing.safetensors"], "nothing.safetensors: not readable as a safetensors file"),
        (["--checkpoint", "nowhere"], "nowhere: no such checkpoint folder"), (["--what"], "--what"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(images, towers_folder, tmp_path, capsys, more, message):  # noqa: F811
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: curate.main(arguments(images, towers_folder, tmp_path / "out", *more)))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


def test_without_faiss_one_line_says_so(images, towers_folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: curate.main(arguments(images, towers_folder, tmp_path / "out")))
    assert ended.value.code == 2 and 'pip install "revision-jax[curate]"' in capsys.readouterr().err and not (tmp_path / "out").exists()
