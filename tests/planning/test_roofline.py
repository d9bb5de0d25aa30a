"""Three times and which of them binds, with numbers that can be divided by hand."""

import dataclasses

import numpy as np
import pytest

from revision_jax.planning.collectives import Collective
from revision_jax.planning.roofline import estimate
from revision_jax.planning.topologies import Topology
from revision_jax.sharding.chips import CHIPS, Chip
from tests.planning.test_topologies import Chip as Place

CHIP = Chip("test", 100.0, 16, 15.75, 10.0, 5.0, 4)  # FLOP/s, GiB, GiB, bytes/s of HBM and of a link, links
SQUARE = Topology("v5e:2x2", tuple(Place(x, y, 0) for y in range(2) for x in range(2)), CHIP)
ORDER = range(4)


def gathered(groups, count=1, size=80):
    groups = None if groups is None else np.asarray(groups)
    return Collective("all-gather", count, size, 4 if groups is None else groups.shape[1], groups)


def test_each_term_is_work_over_peak():
    found = estimate(SQUARE, ORDER, flops=500, hbm_bytes=20, collectives=[gathered([[0, 1], [2, 3]], count=3)])
    assert found.compute == 5.0 and found.hbm == 2.0
    assert found.interconnect == 3 * 40 / 10  # half of 80 bytes leaves a chip, by the two links of one axis
    assert found.step == 12.0 and found.binds == "interconnect"


def test_groups_along_two_axes_have_all_four_links():
    assert estimate(SQUARE, ORDER, 0, 0, [gathered([[0, 1, 2, 3]])]).interconnect == 60 / 20
    assert estimate(SQUARE, ORDER, 0, 0, [gathered(None)]).interconnect == 60 / 20


def test_the_programs_order_of_devices_counts():
    turned = [0, 3, 1, 2]  # its first two devices lie across from each other
    assert estimate(SQUARE, turned, 0, 0, [gathered([[0, 1], [2, 3]])]).interconnect == 40 / 20


def test_between_slices_it_is_the_network():
    sent = Collective("network all-reduce", 3, 80, 2, None)
    assert sent.between_slices and sent.wire == 80  # half of it there, and half of the sum back
    assert estimate(dataclasses.replace(SQUARE, chip=dataclasses.replace(CHIP, network=2.0)), ORDER, 0, 0, [sent]).interconnect == 3 * 80 / 2
    assert estimate(SQUARE, ORDER, 0, 0, [sent]) is None  # of this chip's network nothing is known


def test_of_unknown_chips_no_time_is_told():
    assert estimate(Topology("cpu:4", SQUARE.devices, None), ORDER, 1, 1, []) is None


@pytest.mark.parametrize("kind", CHIPS)
def test_the_table_is_of_one_order_of_magnitude(kind):
    chip = CHIPS[kind]
    assert 1e14 < chip.flops < 1e15 and 0.9 < chip.usable_gib / chip.hbm_gib < 1.02 and 5e11 < chip.hbm_bandwidth < 5e12
    assert chip.interconnect(1) <= chip.interconnect(2) <= chip.links * chip.link_bandwidth
