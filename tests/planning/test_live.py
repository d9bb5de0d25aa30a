"""Bytes of arguments are those of the arrays that a real run holds on each of eight devices."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_arguments_are_what_lies_on_a_device_between_two_steps():
    done = subprocess.run([sys.executable, "-m", "tests.planning.small_model", "live"], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    (planned, *held), = told.values()
    assert held == [planned] * 8
