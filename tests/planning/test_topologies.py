"""Names of topologies, and what is said where one cannot be described."""

import importlib.util

import jax
import pytest

from revision_jax.errors import UserError
from revision_jax.planning import topologies
from revision_jax.planning.topologies import Topology, check


class Chip:
    def __init__(self, *coords):
        self.coords = coords


@pytest.mark.parametrize("name", ["v5e:8x8", "v5p:4x4x8", "v4:2x2x1", "v6e:16x16", "cpu:8", "gpu:4"])
def test_names(name):
    assert check(name) == (1, *name.split(":"))


def test_several_slices():
    assert check("2*v5e:16x16") == (2, "v5e", "16x16") and check("12*v5p:4x4x8") == (12, "v5p", "4x4x8")


OTHERS = ["v5e-64", "v5e:8", "v5e:2x2x2", "v5p:4x4", "tpu:8", "cpu:0", "cpu:2x2", "", "v5e:", "2*cpu:8", "1*v5e:8x8", "*v5e:8x8", "0*v5e:8x8", "2*2*v5e:8x8"]


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_raise_one_line_with_what_is_right(name):
    with pytest.raises(UserError, match=r"no such topology; they are named as v4:2x2x2, v5e:8x8, v5p:4x4x8, v6e:8x8, 2\*v5e:16x16, cpu:8 or gpu:4"):
        check(name)


def test_axes_of_the_torus_that_a_group_extends_along():
    square = Topology("v5e:2x4", tuple(Chip(x, y, 0) for y in range(4) for x in range(2)), None)
    assert [square.axes(group) for group in ([0, 1], [0, 2, 4, 6], range(8), [3])] == [1, 1, 2, 0]
    assert Topology("cpu:2", (object(), object()), None).axes([0, 1]) == 1


def test_cpus_are_those_of_this_process():
    assert len(topologies.load("cpu:1").devices) == 1
    with pytest.raises(UserError, match=f"this process has {jax.device_count()} CPU devices"):
        topologies.load("cpu:4096")


def test_gpus_that_are_not_here_are_one_line():
    with pytest.raises(UserError, match=r"jax sees 0 GPUs here, and compiles for GPUs only where they are"):
        topologies.load("gpu:4")


def test_without_the_tpu_compiler_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs the TPU compiler, without any TPU: pip install "jax\[tpu\]"'):
        topologies.load("v5e:8x8")


def test_what_must_be_set_before_jax_is_imported(monkeypatch):
    environment = {"XLA_FLAGS": "--xla_dump_to=x"}
    monkeypatch.setattr(topologies.os, "environ", environment)
    topologies.prepare("cpu:8")
    assert environment["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=8" and environment["JAX_PLATFORMS"] == "cpu"
