"""Attention of a sequence that is split over devices: values, gradients and collectives, on eight CPU devices of a process of its own."""

import json
import subprocess
import sys

import pytest

from revision_jax.models.context import ulysses_repeats
from tests.models.context_cases import CASES

pytestmark = pytest.mark.slow


def asked(what: str) -> dict:
    done = subprocess.run([sys.executable, "-m", "tests.models.context_cases", what], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def attention():
    return asked("attention")


@pytest.fixture(scope="module")
def decoder():
    return asked("decoder")


@pytest.mark.parametrize("name", CASES)
def test_equals_dense_attention_with_garbage_in_the_pads(attention, name):
    found = attention[name]
    assert found["finite"] and found["value"] < 5e-6 and max(found["gradients"]) < 2e-5


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[-1] % 8 == 0])
def test_keys_are_never_gathered(attention, name):
    found = attention[name]["collectives"]
    assert "all-gather" not in found
    if name.startswith("ulysses"):  # q, k, v and the result, forward and backward
        assert found["all-to-all"] == 8 and "collective-permute" not in found
    else:  # k and v go to all but one device, twice (once where the ring is so short that the compiler unrolls it); their gradients go the whole way round
        parts = CASES[name][0]["context"]
        assert found["collective-permute"] == (4 if parts > 2 else 2) * (parts - 1) + 2 * parts and "all-to-all" not in found


def test_which_way_the_sizes_choose():
    assert [ulysses_repeats(*sizes) for sizes in ((8, 8, 4), (8, 4, 4), (8, 2, 4), (32, 8, 16), (28, 4, 8), (6, 3, 4), (12, 2, 3), (12, 6, 4))] == [
        1, 1, 2, 2, None, None, 3, 2,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["fsdp_context", "fsdp_context_tensor", "unrolled, rows"])
def test_the_decoder_under_the_strategies_that_split_its_sequence(decoder, name):
    found = decoder[name]
    assert found["mesh"]["context"] == 2
    assert found["value"] < 1e-5 and found["gradients"] < 2e-4
    assert found["collectives"]["all-to-all"] > 0
