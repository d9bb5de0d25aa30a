"""Which surroundings mean several processes, and what joins them; SLURM's variables and explicit flags in processes of their own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from revision_jax.errors import UserError
from revision_jax.sharding import distributed

ROOT = Path(__file__).parents[2]
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
PROGRAM = """
import json, jax
from revision_jax.sharding import distributed
distributed.join()
print(json.dumps([jax.process_index(), jax.process_count(), distributed.in_turn(lambda: jax.process_index(), "made")]))
"""


@pytest.mark.parametrize(
    "environment, found",
    [
        ({}, None),
        (SLURM, "slurm"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({name: value for name, value in SLURM.items() if "STEP" not in name}, None),  # a shell inside an allocation of several tasks
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a-0,a-1", "TPU_WORKER_ID": "0"}, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "a-0", "MEGASCALE_NUM_SLICES": "2"}, "tpu"),
    ],
)
def test_surroundings(environment, found):
    assert distributed.surroundings(environment) == found


@pytest.fixture
def asked(monkeypatch):
    """What jax was asked for."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **more: calls.append((*arguments, *more.items())))
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    return calls


def test_a_process_alone_joins_nobody(asked):
    distributed.join()
    assert asked == []


@pytest.mark.parametrize(
    "given, environment, call",
    [
        (("host:1", 4, 2), {}, ("host:1", 4, 2, ("cluster_detection_method", "deactivate"))),
        (("host:1", 4, 2), SLURM, ("host:1", 4, 2, ("cluster_detection_method", "deactivate"))),  # flags go first
        (("auto", None, None), {}, ()),
        ((None, None, None), SLURM, (("cluster_detection_method", "slurm"),)),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "a,b"}, (("cluster_detection_method", None),)),
    ],
)
def test_what_jax_is_asked_for(asked, monkeypatch, given, environment, call):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.join(*given)
    assert asked == [call]


@pytest.mark.parametrize(
    "given, told",
    [
        (("host:1", 4, None), "go together"),
        ((None, 4, 1), "go together"),
        (("host", 4, 1), "wants HOST:PORT"),
        (("host:1", 4, 4), "a process from 0 to 3"),
    ],
)
def test_half_an_address_is_refused(asked, given, told):
    with pytest.raises(UserError, match=told):
        distributed.join(*given)
    assert asked == []


def test_what_jax_refuses_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("coordinator_address should\nbe defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match=r"--coordinator auto: could not join the other processes \(coordinator_address should be defined\.\)"):
        distributed.join("auto")


@pytest.mark.slow
def test_two_tasks_of_a_slurm_step_find_each_other():
    job = next(job for job in range(os.getpid() % 4000, 4096) if _free(job + 61440))  # jax makes the port of the job's number
    environment = {**os.environ, **SLURM, "JAX_PLATFORMS": "cpu", "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
    tasks = [{**environment, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    processes = [subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, env=task, stdout=subprocess.PIPE) for task in tasks]
    told = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes]
    assert told == [[0, 2, 0], [1, 2, 1]]


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) != 0
