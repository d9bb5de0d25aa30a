"""Collectives of a compiled program: how often, how many bytes, and between which chips.

`bytes` is what a chip brings into a collective or gets out of it, whichever is more: the whole gathered array of an all-gather, the whole array that an
all-reduce, a reduce-scatter or an all-to-all reads, what a collective-permute sends. `wire` is what leaves each chip when it runs as a ring over n chips:
(n - 1) / n of that, twice that for an all-reduce (Chan et al. 2007, "Collective communication: theory, practice, and experience").

Between slices TPUs send through their hosts: the compiler does inside of a slice what can be done there, and leaves each chip its part to exchange with its
like in the other slices. Such a kind is called "network all-reduce" and so on, and its n are the slices.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from revision_jax.planning.hlo import Computation, Instruction, Module

NETWORK = "network "
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast", "ragged-all-to-all")


@dataclass(frozen=True)
class Collective:
    """One instruction. count: runs in one call of the program; bytes, wire: of one run, on one chip; groups: the chips that take part together."""

    kind: str
    count: int
    bytes: int
    size: int  # chips of a group
    groups: Int[np.ndarray, "g n"] | None  # positions in the program's device order; None where the text names them in a way not read here

    @property
    def wire(self) -> float:
        share = (self.size - 1) / self.size
        return {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind.removeprefix(NETWORK), share) * self.bytes

    @property
    def between_slices(self) -> bool:
        return self.kind.startswith(NETWORK)


def collectives(module: Module, devices: int) -> list[Collective]:
    """All collectives of a program for `devices` chips; groups of one chip are left out."""
    found, parts = [], set()
    outside = module.times(inside_fusions=False)
    for computation, instruction, times in module.runs():
        kind = instruction.op.removesuffix("-start")
        if kind == "send" and (sent := _between_slices(computation, instruction, times)):
            found.append(sent)
        if kind not in KINDS:
            continue
        if computation.name not in outside:  # a part of an asynchronous collective: several fusions carry it on while they compute, under one number
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if channel and channel.group(1) in parts:
                continue
            parts.add(channel.group(1) if channel else instruction.name)
        groups = _groups(instruction.attributes, devices)
        size = _size(instruction.attributes, devices) if groups is None else groups.shape[1]
        if size > 1 or kind == "collective-permute":
            kind = "reduce-scatter" if kind == "all-reduce" and _scattered(computation, instruction) else kind
            found.append(Collective(kind, times, _bytes(computation, instruction, kind, size), size, groups))
    return found


def by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    """{kind: {"count", "bytes", "wire"}} of one call of the program, on one chip."""
    table: dict[str, dict[str, float]] = {}
    for one in found:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0, "wire": 0.0})
        row["count"] += one.count
        row["bytes"] += one.count * one.bytes
        row["wire"] += one.count * one.wire
    return dict(sorted(table.items(), key=lambda item: -item[1]["bytes"]))


def _bytes(computation: Computation, instruction: Instruction, kind: str, size: int) -> int:
    brought = sum(shape.bytes for shape in computation.shapes(instruction.operands))
    return brought * size if kind == "all-gather" else brought


def _between_slices(computation: Computation, instruction: Instruction, times: int) -> Collective | None:
    """What a host exchanges for a chip with the other slices; None for another transfer."""
    told = re.search(r'_xla_megascale_target="\{([\d,]+)\}x.*?_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if told is None:
        return None
    (part, *_) = computation.shapes(instruction.operands)
    kind = NETWORK + told.group(2).lower().replace("_", "-")
    return Collective(kind, times, part.bytes, len(told.group(1).split(",")), None)


def _scattered(computation: Computation, instruction: Instruction) -> bool:
    """Whether of an all-reduce's result each chip keeps its own part alone: TPUs write a reduce-scatter as a fusion of both."""
    if not computation.name.startswith(("all-reduce-scatter", "fused_all-reduce-scatter")):
        return False
    return any(other.op == "dynamic-slice" and instruction.name in other.operands for other in computation.instructions.values())


def _groups(attributes: str, devices: int) -> Int[np.ndarray, "g n"] | None:
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes)
    if pairs:
        return np.asarray([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs.group(1))])
    listed = re.search(r"replica_groups=\{(\{[\d,]+\}(?:,\s*\{[\d,]+\})*)\}", attributes)
    if listed:
        rows = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed.group(1))]
        return np.asarray(rows) if len({len(row) for row in rows}) == 1 else None
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if counted:
        return _counted(*counted.groups())
    if "replica_groups=mesh[" not in attributes:
        return np.arange(devices)[None]  # no groups named: all chips together
    sizes, along, order = _mesh_axes(attributes)
    if order is None:
        return None
    last = [list(sizes).index(name) for name in along]
    rest = [axis for axis in range(len(sizes)) if axis not in last]
    return order.transpose(*rest, *last).reshape(-1, math.prod(along.values()))


def _counted(shape: str, dims: str, permutation: str | None) -> Int[np.ndarray, "..."]:
    """0, 1, 2, .. as [2,4]<=[4,2]T(1,0) says: counted through `dims`, axes permuted, read as `shape`."""
    numbers = [[int(n) for n in part.split(",")] for part in (shape, dims)]
    order = np.arange(math.prod(numbers[1])).reshape(numbers[1])
    return (order.transpose([int(n) for n in permutation.split(",")]) if permutation else order).reshape(numbers[0])


def _size(attributes: str, devices: int) -> int:
    """Chips of a group whose members are not known."""
    if "replica_groups=mesh[" in attributes:
        return math.prod(_mesh_axes(attributes)[1].values())
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return len(listed.group(1).split(",")) if listed else devices


def _mesh_axes(attributes: str) -> tuple[dict[str, int], dict[str, int], Int[np.ndarray, "..."] | None]:
    """Groups named by axes, mesh['a'=4,'b'=16] {'a'}: (sizes of all axes, of those that a group extends along, the mesh of chips).

    Chips are counted through the mesh, or as device_ids=([4,2]T(1,0)) says. A part of an axis is written 'b':(before)size; then the mesh is None.
    """
    found = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", attributes)
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found.group(1))} if found else {}
    if not sizes:
        raise ValueError(f"groups of a collective that are written in a way not known here: {attributes[:160]}")
    along = {name: int(part) if part else sizes[name] for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found.group(4))}
    if ":(" in found.group(4):
        return sizes, along, None
    shape = ",".join(map(str, sizes.values()))
    return sizes, along, _counted(shape, found.group(2) or shape, found.group(3))
