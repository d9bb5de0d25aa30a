"""Collectives of texts in every notation of groups, and of a real program whose bytes are written down by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest

from revision_jax.planning import hlo
from revision_jax.planning.collectives import by_kind, collectives
from tests.planning.small_model import INNER, LAYERS, ROWS, WIDTH

WEIGHTS = 4 * LAYERS * 2 * WIDTH * INNER  # bytes of both, float32
HIDDEN = 4 * LAYERS * ROWS * WIDTH  # bytes of the hidden states that leave the layers


def program(line: str, before: str = "") -> hlo.Module:
    return hlo.parse(f"HloModule m\n{before}\nENTRY %main (a: f32[8,16]) -> f32[8,16] {{\n  %a = f32[8,16]{{1,0}} parameter(0)\n  ROOT %r = {line}\n}}\n")


GROUPS = {
    "replica_groups={{0,1,2,3},{4,5,6,7}}": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "replica_groups=[2,4]<=[8]": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "replica_groups=[2,4]<=[4,2]T(1,0)": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_0','axis_2'}": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups={}": [[0, 1, 2, 3, 4, 5, 6, 7]],
}


@pytest.mark.parametrize("groups", GROUPS)
def test_groups(groups):
    (found,) = collectives(program(f"f32[8,16]{{1,0}} all-reduce(%a), channel_id=1, {groups}, use_global_device_ids=true, to_apply=%add"), 8)
    np.testing.assert_array_equal(found.groups, GROUPS[groups])


def test_a_part_of_an_axis_has_a_size_but_no_known_members():
    (found,) = collectives(program("f32[8,16]{1,0} all-reduce(%a), replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}, to_apply=%add"), 8)
    assert (found.size, found.groups) == (4, None)
    with pytest.raises(ValueError, match="not known here"):
        collectives(program("f32[8,16]{1,0} all-reduce(%a), replica_groups=mesh[@other] {'axis_0'}, to_apply=%add"), 8)


def test_bytes_and_what_leaves_a_chip():
    size, groups = 4 * 8 * 16, "replica_groups=[2,4]<=[8]"
    for line, kind, whole, wire in (
        ("f32[8,16]{1,0} all-reduce(%a)", "all-reduce", size, 1.5 * size),
        ("f32[32,16]{1,0} all-gather(%a)", "all-gather", 4 * size, 3 * size),
        ("(f32[8,16]{1,0}, f32[32,16]{1,0}) all-gather-start(%a)", "all-gather", 4 * size, 3 * size),
        ("f32[2,16]{1,0} reduce-scatter(%a)", "reduce-scatter", size, 0.75 * size),
        ("f32[8,16]{1,0} all-to-all(%a)", "all-to-all", size, 0.75 * size),
    ):
        (found,) = collectives(program(f"{line}, {groups}, dimensions={{0}}, to_apply=%add"), 8)
        assert (found.kind, found.bytes, found.wire) == (kind, whole, wire)
    (found,) = collectives(program("f32[8,16]{1,0} collective-permute(%a), source_target_pairs={{0,1},{1,2},{2,0}}"), 8)
    assert (found.kind, found.bytes, found.wire) == ("collective-permute", size, size)


def test_groups_of_one_chip_send_nothing():
    assert collectives(program("f32[8,16]{1,0} all-reduce(%a), replica_groups=[8,1]<=[8], to_apply=%add"), 8) == []


def test_parts_of_one_asynchronous_collective_count_once():
    part = "\n%fused.{n} (p: f32[8,16]) -> f32[32,16] {{\n  %p = f32[8,16]{{1,0}} parameter(0)\n"
    part += "  ROOT %g.{n} = f32[32,16]{{1,0}} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={{0}}\n}}\n"
    text = "HloModule m\n" + part.format(n=1) + part.format(n=2) + "\nENTRY %main (a: f32[8,16]) -> f32[32,16] {\n  %a = f32[8,16]{1,0} parameter(0)\n"
    text += "  %one = f32[32,16]{1,0} fusion(%a), kind=kCustom, calls=%fused.1\n  ROOT %two = f32[32,16]{1,0} fusion(%a), kind=kCustom, calls=%fused.2\n}\n"
    assert by_kind(collectives(hlo.parse(text), 8))["all-gather"]["count"] == 1


def test_an_all_reduce_of_which_each_chip_keeps_its_part_is_a_reduce_scatter():
    fused = "%all-reduce-scatter.1 (p: f32[8,16]) -> f32[2,16] {\n  %p = f32[8,16]{1,0} parameter(0)\n"
    fused += "  %r = f32[8,16]{1,0} all-reduce(%p), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add\n  %i = s32[] constant(0)\n"
    fused += "  ROOT %s = f32[2,16]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={2,16}\n}\n"
    found = by_kind(collectives(program("f32[2,16]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1", fused), 8))
    assert found == {"reduce-scatter": {"count": 1, "bytes": 512, "wire": 384.0}}


# --------------------------------------------------------------------------------------------------------------- the ground truth


@pytest.fixture(scope="module")
def small():
    done = subprocess.run([sys.executable, "-m", "tests.planning.small_model"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_dp_sums_the_gradients_and_the_loss(small):
    found = small["dp"]["collectives"]
    assert set(found) == {"all-reduce"} and found["all-reduce"]["bytes"] == WEIGHTS + 4


@pytest.mark.slow
def test_fsdp_gathers_every_weight_twice_and_sums_its_gradient(small):
    found = small["fsdp"]["collectives"]
    assert set(found) == {"all-gather", "all-reduce"}
    assert found["all-gather"] == {"count": 4 * LAYERS, "bytes": 2 * WEIGHTS, "wire": 2 * WEIGHTS * 7 / 8}  # forward and backward
    # CPUs have no reduce-scatter: the whole gradient is summed. And the loss, and of each weight the square of the part that a device has.
    assert found["all-reduce"]["bytes"] == WEIGHTS + 3 * 4


@pytest.mark.slow
def test_tensor_sums_hidden_states_both_ways_and_its_share_of_the_gradients(small):
    found = small["tensor"]["collectives"]  # data 4, tensor 2
    assert set(found) == {"all-reduce"}
    # Forward and backward each layer's hidden states of the own rows, over tensor; gradients of the own half, over data; loss and two squares.
    assert found["all-reduce"]["bytes"] == 2 * HIDDEN / 4 + WEIGHTS / 2 + 3 * 4


@pytest.mark.slow
def test_every_strategy_does_the_same_products(small):
    # forward, the gradient that goes on, the gradient of the weights: three products of each weight with each row, an eighth of them on a chip
    wanted = 3 * LAYERS * 2 * (2 * ROWS * WIDTH * INNER) / 8
    assert {small[name]["flops"] for name in small} == {wanted}
