"""Training in processes of its own: killed, on eight devices, on two hosts. The toy task; each run a few seconds."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from revision_jax.training.metrics import read_rows

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def start(workdir, *arguments, devices=1, **pipes):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "tests.training.toy_task", str(workdir), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **pipes)


def finish(process, timeout=900):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return finish(start(workdir)), read_rows(workdir / "metrics.jsonl")


def losses(rows):
    return [(row["stage"], row["step"], row["loss"]) for row in rows]


def test_killed_and_started_again_ends_with_bit_identical_weights(whole, tmp_path):
    result, rows = whole
    seen = []
    for stage, step in (("base", 7), ("fine", 6)):
        process = start(tmp_path, "--sleep", 0.02)
        deadline = time.monotonic() + 900
        while True:  # as soon as the metrics say that the step has been taken, wherever the process then is
            seen = read_rows(tmp_path / "metrics.jsonl")
            if any(row["stage"] == stage and row["step"] >= step for row in seen):
                break
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-3000:]
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        assert len(seen) < len(rows)  # it was in the middle
    assert finish(start(tmp_path))["leaves"] == result["leaves"]
    assert losses(read_rows(tmp_path / "metrics.jsonl")) == losses(rows)


@pytest.mark.parametrize("mesh", [("mesh.data=8",), ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")], ids=["data", "data fsdp tensor"])
def test_eight_devices_give_the_same_losses(whole, tmp_path, mesh):
    rows = whole[1]
    assert finish(start(tmp_path, *mesh, devices=8))["devices"] == 8
    for one, eight in zip(rows, read_rows(tmp_path / "metrics.jsonl"), strict=True):
        assert eight["index_sum"] == one["index_sum"]
        assert eight["loss"] == pytest.approx(one["loss"], rel=2e-5)


def test_two_processes_give_the_same_losses_and_one_goes_on_from_their_checkpoint(whole, tmp_path):
    rows = whole[1]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shape = ("mesh.data=2", "mesh.fsdp=2", "train.stages.fine.steps=0")
    processes = [start(tmp_path, "--process", index, 2, port, *shape, devices=2) for index in range(2)]
    assert [finish(process)["devices"] for process in processes] == [4, 4]
    both = read_rows(tmp_path / "metrics.jsonl")
    assert len(both) == 12
    for one, two in zip(rows, both, strict=False):
        assert two["index_sum"] == one["index_sum"]
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-5)
    finish(start(tmp_path, "train.stages.fine.steps=0"))
