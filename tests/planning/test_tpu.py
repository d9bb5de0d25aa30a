"""What the TPU's own compiler makes of a model whose every collective can be written down, for slices that are not here."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.planning.test_collectives import HIDDEN, WEIGHTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs the TPU compiler: pip install "jax[tpu]" (no TPU)'),
]


def compiled(topology: str) -> dict:
    done = subprocess.run([sys.executable, "-m", "tests.planning.small_model", "tpu", topology], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_collectives_of_a_slice_are_those_written_down():
    told = compiled("v5e:2x4")
    found = {strategy: {kind: row["bytes"] for kind, row in values["collectives"].items()} for strategy, values in told.items()}
    assert found["dp"] == {"all-reduce": WEIGHTS + 4}
    # Each weight twice, forward and backward, as bfloat16, which is what a TPU multiplies; its gradient; the loss and the norm.
    assert found["fsdp"] == {"all-gather": WEIGHTS, "all-reduce": WEIGHTS + 2 * 4}
    assert found["tensor"] == {"all-reduce": 2 * HIDDEN / 4 + WEIGHTS / 2 + 2 * 4}


def test_between_two_slices_go_gradients_and_no_hidden_states():
    told = {strategy: values["collectives"] for strategy, values in compiled("2*v5e:2x2").items()}
    # Summed inside of a slice first, so that of each gradient a chip's part alone goes across: a quarter, some padded to twice that.
    for found in (told["dp"], told["tensor"]):
        assert [kind for kind in found if kind.startswith("network")] == ["network all-reduce"]
        assert WEIGHTS / 4 < found["network all-reduce"]["bytes"] < WEIGHTS / 2 < HIDDEN / 4


def test_the_planner_takes_a_stage_of_the_shipped_model(tmp_path):
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "launch.plan", "tiny", "--topology", "2*v5e:2x2", "--strategy", "fsdp", "dp", "--stage", "1a"]
    done = subprocess.run([*command, "--json", str(out), "--cache", str(tmp_path / "plans")], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = json.loads(out.read_text())["reports"]
    assert {report["strategy"] for report in reports} == {"fsdp", "dp"} and all(report["problem"] == "" and report["fits"] for report in reports)
