"""`launch.train` by several processes of one machine: the corpus shared out, the same losses, one exported checkpoint, and a stop that all of them hear."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from revision_jax import checkpoint, paths
from revision_jax.config import DataConfig, StageConfig, TrainConfig
from revision_jax.training.metrics import read_rows
from tests import tiny

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """A tiny model and one grounding stage, on two films of three minutes; each film is encoded by another process where there are two."""
    stage = StageConfig(name="1a", level="dense", train=("lora/dense", "adapter/dense"), steps=4, batch=4, learning_rate=1e-2)
    base = tiny.config()
    config = dataclasses.replace(
        base, grounding=dataclasses.replace(base.grounding, query_len=24, prompt_len=40, answer_len=8), text=dataclasses.replace(base.text, max_len=24),
        train=TrainConfig(stages=(stage,), log_every=1), data=DataConfig(train_videos=2, patch_videos=0, duration_s=180.0, fps=2),
    )  # fmt: skip
    file = tmp_path_factory.mktemp("config") / "small.py"
    text = json.dumps(config.to_dict())
    file.write_text(f"import json\nfrom revision_jax.config import ExperimentConfig\n\ndef get_config():\n"
                    f"    return ExperimentConfig.from_dict(json.loads({text!r}))\n", encoding="utf-8")  # fmt: skip
    return file


def train(config_file, workdir, *arguments, processes=1):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "launch.train", str(config_file), "--workdir", str(workdir), *arguments]
    flags = lambda index: ["--coordinator", f"localhost:{port}", "--processes", str(processes), "--process", str(index)] if processes > 1 else []
    started = [subprocess.Popen([*command, *flags(index)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for index in range(processes)]
    return started


def ended(processes, status=0):
    for process in processes:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == status, errors[-3000:]


@pytest.fixture(scope="module")
def alone(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    ended(train(config_file, workdir))
    return workdir


def test_two_processes_train_what_one_trains_and_one_of_them_exports(alone, config_file, tmp_path):
    ended(train(config_file, tmp_path, "mesh.data=1", "mesh.fsdp=2", processes=2))
    one, two = (read_rows(folder / "metrics.jsonl") for folder in (alone, tmp_path))
    assert [row["step"] for row in two] == [1, 2, 3, 4]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    wanted, found = (paths.flatten(checkpoint.load(folder / "checkpoint").state) for folder in (alone, tmp_path))
    assert set(wanted) == set(found)
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, wanted[name], atol=2e-3, rtol=2e-3, err_msg=name)  # stored in 16 bits


def test_sigterm_to_one_process_saves_one_step_and_ends_both_with_143(alone, config_file, tmp_path):
    longer = ("mesh.fsdp=2", "train.stages.1a.steps=400", "data.prefetch=1")
    processes = train(config_file, tmp_path, *longer, processes=2)
    deadline = time.monotonic() + 600
    while not read_rows(tmp_path / "metrics.jsonl"):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), processes[0].communicate()[1][-3000:]
        time.sleep(0.02)
    os.kill(processes[1].pid, signal.SIGTERM)
    ended(processes, 143)
    steps = sorted(int(folder.name) for folder in (tmp_path / "checkpoints" / "00-1a").iterdir() if folder.name.isdigit())
    assert len(steps) == 2 and steps[0] == 0 and 1 <= steps[1] < 400
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["step"] == steps[1]


def test_an_int8_base_is_trained_on_and_exported_as_the_weights_it_stands_for(alone, config_file, tmp_path):
    ended(train(config_file, tmp_path, "train.base_dtype=int8"))
    wide, small = (read_rows(folder / "metrics.jsonl") for folder in (alone, tmp_path))
    assert [row["loss"] for row in small] == pytest.approx([row["loss"] for row in wide], rel=0.02)
    assert [row["loss"] for row in small] != [row["loss"] for row in wide]
    wanted, found = (paths.flatten(checkpoint.load(folder / "checkpoint").state) for folder in (alone, tmp_path))
    assert set(wanted) == set(found)
    up = "params/decoder/layers/mlp/up/kernel"
    step = np.abs(wanted[up]).max(axis=-2, keepdims=True) / 127
    assert np.abs(found[up] - wanted[up]).max() > 0 and (np.abs(found[up] - wanted[up]) <= step).all()
    assert any(np.abs(leaf).max() > 0 for name, leaf in found.items() if name.startswith("lora/dense") and name.endswith("/b"))  # zero before training
