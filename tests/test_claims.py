"""claims.py: one process at a time, and no claim outlives its process."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from revision_jax.claims import claim
from revision_jax.errors import UserError

HOLDER = """
import sys, time
from revision_jax.claims import claim
with claim(sys.argv[1]) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def test_a_second_process_is_told_and_a_killed_one_lets_go(tmp_path):
    process = holder(tmp_path / "deep" / "a")
    try:
        with claim(tmp_path / "deep" / "a") as mine, claim(tmp_path / "deep" / "b") as other:
            assert not mine and other
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.listdir(tmp_path / "deep") == [".a.lock"]  # stale
    with claim(tmp_path / "deep" / "a") as mine:
        assert mine
    assert os.listdir(tmp_path / "deep") == []


def test_never_two_at_once(tmp_path):
    inside, most, taken = 0, 0, 0
    guard = threading.Lock()

    def work():
        nonlocal inside, most, taken
        for _ in range(200):
            with claim(tmp_path / "a") as mine:
                if mine:
                    with guard:
                        inside, taken = inside + 1, taken + 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and taken > 0 and os.listdir(tmp_path) == []


def test_an_unwritable_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be claimed"), claim(tmp_path / "file" / "a"):
        pass
