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


def test_killed_in_the_middle_of_a_save_goes_on_from_the_checkpoint_before(whole, tmp_path):
    result, rows = whole
    process = start(tmp_path, "--die-in-save", 10)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == -signal.SIGKILL, errors[-3000:]
    left = {path.name for path in (tmp_path / "checkpoints" / "00-base").iterdir()}
    assert {"0", "5"} <= left and "10" not in left and any(name.startswith("10.") for name in left)
    assert finish(start(tmp_path))["leaves"] == result["leaves"]
    assert losses(read_rows(tmp_path / "metrics.jsonl")) == losses(rows)


@pytest.mark.parametrize("mesh", [("mesh.data=8",), ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")], ids=["data", "data fsdp tensor"])
def test_eight_devices_give_the_same_losses(whole, tmp_path, mesh):
    rows = whole[1]
    assert finish(start(tmp_path, *mesh, devices=8))["devices"] == 8
    for one, eight in zip(rows, read_rows(tmp_path / "metrics.jsonl"), strict=True):
        assert eight["index_sum"] == one["index_sum"]
        assert eight["loss"] == pytest.approx(one["loss"], rel=2e-5)


def test_parts_of_a_batch_are_the_same_rows_on_four_devices(tmp_path):
    parts = ("train.stages.base.accumulate=2", "train.stages.fine.accumulate=4")
    finish(start(tmp_path / "one", *parts))
    finish(start(tmp_path / "four", *parts, "mesh.data=2", "mesh.fsdp=2", devices=4))
    same(*(read_rows(tmp_path / name / "metrics.jsonl") for name in ("one", "four")))


def together(workdir, count, *arguments, devices=1):
    """`count` processes of one run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [start(workdir, *leading, "--process", index, count, port, *rest, devices=devices)
            for leading, rest in [split(arguments)] for index in range(count)]  # fmt: skip


def split(arguments):
    """(--sleep S, the rest)."""
    return (arguments[:2], arguments[2:]) if arguments[:1] == ("--sleep",) else ((), arguments)


def same(one, other, rel=1e-5):
    assert [(row["stage"], row["step"], row["index_sum"]) for row in other] == [(row["stage"], row["step"], row["index_sum"]) for row in one]
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in one], rel=rel)


@pytest.mark.parametrize("count, mesh", [(2, ("mesh.data=2", "mesh.fsdp=2")), (4, ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"))], ids=["two", "four"])
def test_several_processes_give_the_same_losses(whole, tmp_path, count, mesh):
    results = [finish(process) for process in together(tmp_path, count, *mesh, devices=2)]
    assert [(result["devices"], result["step"]) for result in results] == [(2 * count, 10)] * count
    same(whole[1], read_rows(tmp_path / "metrics.jsonl"))


def test_sigterm_to_one_of_four_stops_all_at_one_step_and_two_go_on_with_the_same_data(whole, tmp_path):
    processes = together(tmp_path, 4, "--sleep", 0.3, "mesh.data=2", "mesh.fsdp=2")  # agreeing on a step takes a second or more
    deadline = time.monotonic() + 900
    while not any(row["step"] >= 3 for row in read_rows(tmp_path / "metrics.jsonl")):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[2].send_signal(signal.SIGTERM)
    results = [finish(process) for process in processes]
    (ended,) = {(result["stage"], result["step"], result["stopped"]) for result in results}
    assert ended[2] == signal.SIGTERM and (ended[0] == "fine" or ended[1] >= 3)
    assert (tmp_path / "checkpoints" / {"base": "00-base", "fine": "01-fine"}[ended[0]] / str(ended[1])).is_dir()
    for process in together(tmp_path, 2, "mesh.fsdp=2", "mesh.tensor=2", devices=2):
        finish(process)
    same(whole[1], read_rows(tmp_path / "metrics.jsonl"))
