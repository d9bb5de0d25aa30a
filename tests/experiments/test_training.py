"""The process that a short training is: its status and log, one at a time, and its end with the run that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from revision_jax.errors import UserError
from revision_jax.experiments import training


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder whose `launch.train` sleeps as long as it is told to, or says what it was told, and notes that it was stopped."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "__init__.py").touch()
    (tmp_path / "launch" / "train.py").write_text(
        "import signal, sys, time\n"
        "def stopped(*_):\n    print('saved', flush=True)\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stopped)\n"
        "print('began', flush=True)\n"
        "time.sleep(float(sys.argv[1])) if sys.argv[1][0].isdigit() else sys.exit(sys.argv[1])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return tmp_path


def began(run: Path) -> None:
    deadline = time.monotonic() + 300
    while not (run / "train.log").exists() or "began" not in (run / "train.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_status_and_log(root, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert training._train(["0"], run, root) == 0 and training._train(["it broke"], run, root) == 1
    assert (run / "train.log").read_text().split() == ["began", "began", "it", "broke"]


def test_one_at_a_time_also_after_its_starter_was_killed(root, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    code = "import sys; from pathlib import Path; from revision_jax.experiments import training; training._train(['600'], Path(sys.argv[1]), Path(sys.argv[2]))"
    starter = subprocess.Popen([sys.executable, "-c", code, str(run), str(root)], start_new_session=True)
    try:
        began(run)
        with pytest.raises(UserError, match="is being trained by another process"):
            training._train(["0"], run, root)
        starter.kill()
        starter.wait()
        with pytest.raises(UserError, match="is being trained by another process"):
            training._train(["0"], run, root)
    finally:
        os.killpg(starter.pid, signal.SIGKILL)  # the whole group: what it left as well
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            assert training._train(["0"], run, root) == 0
            return
        except UserError:
            time.sleep(0.02)
    pytest.fail("the lock outlived the training")


def test_a_stopped_run_stops_its_training_and_waits_for_it(root, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    code = (
        "import signal, sys; from pathlib import Path; from revision_jax.experiments import training\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "training._train(['600'], Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(run), str(root)])
    began(run)
    starter.send_signal(signal.SIGTERM)
    assert starter.wait(timeout=300) == 143 and (run / "train.log").read_text().split() == ["began", "saved"]
