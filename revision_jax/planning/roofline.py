"""How long a step takes at best: the longest of what its products, its memory and its links need, each at its peak and all at once.

    compute        FLOPs of the compiled program on one chip / the chip's peak
    hbm            bytes between the chip and its HBM / its bandwidth
    interconnect   bytes that leave the chip in each collective / what the links can carry that its group has, or, between slices, a chip's share of the network

It is a bound from below: no kernel reaches its peak, element-wise work (softmax, dropout's random bits) costs nothing here, and a collective is taken to hide
behind compute. What binds is what to change first. Source: Williams et al. 2009, "Roofline"; its use for meshes: jax-ml.github.io/scaling-book.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from revision_jax.planning.collectives import Collective
from revision_jax.planning.topologies import Topology
from revision_jax.sharding.chips import Chip


@dataclass(frozen=True)
class Estimate:
    """Seconds of one step."""

    compute: float
    hbm: float
    interconnect: float

    @property
    def step(self) -> float:
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def binds(self) -> str:
        return max(("compute", "hbm", "interconnect"), key=lambda name: getattr(self, name))


def estimate(topology: Topology, order: Sequence[int], flops: int, hbm_bytes: int, collectives: Sequence[Collective]) -> Estimate | None:
    """The bound of a program. order: of each device in the program's own order, its number in the topology. None where nothing is known of the chip, or of the
    network between slices that the program uses.

    flops, hbm_bytes: of one chip (`work.py`).
    """
    chip = topology.chip
    if chip is None:
        return None
    if chip.network is None and any(one.between_slices for one in collectives):
        return None
    speed = lambda one: chip.network if one.between_slices else chip.interconnect(_axes(topology, order, one, chip))
    return Estimate(flops / chip.flops, hbm_bytes / chip.hbm_bandwidth, sum(one.count * one.wire / speed(one) for one in collectives))


def _axes(topology: Topology, order: Sequence[int], collective: Collective, chip: Chip) -> int:
    """Axes of the torus that a collective's groups extend along: those of the first group, which the others are like; all where the members are not known."""
    if collective.groups is None:
        return chip.links // 2
    return topology.axes([order[place] for place in collective.groups[0]])
