"""The command: files at their place, and one line and status 2 for bad arguments."""

import json
import subprocess
import sys

import pytest

from launch import synthesize
from launch.cli import run


def test_a_minute_from_the_command_line(tmp_path):
    out = tmp_path / "v"
    command = [sys.executable, "-m", "launch.synthesize", "--seed", "9", "--duration", "60", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "annotations.json").read_text())["seed"] == 9 and (out / "video.mp4").stat().st_size > 1000


def test_a_video_of_a_split(tmp_path):
    synthesize.main(["--split", "composition", "--index", "2", "--duration", "60", "--questions", "3", "--out", str(tmp_path)])
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert content["split"] == "composition" and len(content["queries"]) <= 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seed", "-1"], ["--seed", "1000000"], ["--seed", "x"], ["--duration", "59"], ["--duration", "nan"], ["--duration", "inf"], ["--duration", "1e9"],
        ["--split", "exam"], ["--split", "test", "--index", "-1"], ["--split", "test", "--seed", "1"], ["--index", "1"], ["--fps", "0"], ["--fps", "2.5"],
        ["--size", "99"], ["--questions", "-1"], ["--colour"],
    ],
)  # fmt: skip
def test_bad_arguments(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        run(lambda: synthesize.main([*arguments, "--out", str(tmp_path / "out")]))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_interrupt_is_130(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run(interrupted)
    assert caught.value.code == 130 and "Traceback" not in capsys.readouterr().err
