"""Packing conversations of unequal length into rows of static shapes, planned from their lengths alone: a pure function of (seed, epoch).

A row (`RowConfig`) has room for tokens, for visual tokens among them, for learnt tokens, and for pictures in the encoder's slots. A conversation belongs
to the first shape that holds it. All of a shape's conversations, in the epoch's order, are cut into windows; each window is packed best-fit-decreasing: the
longest first, each into the fullest row that still holds it. Rows are shuffled, filled up to whole steps with empty ones, and the steps of all shapes
shuffled again:

    order of the epoch   c a d b f e ...     windows of shape 0: [c a d] [b f e]     rows: {c d} {a} | {b e} {f}     steps of 2 rows: ({f} {c d}) ({b e} {a})

So an epoch shows every conversation once, a step has one shape, and whoever knows the seed knows the rows of any step.

Pictures share slots: the encoder's attention is confined to a picture by segment ids, and costs what a slot costs. Equal pictures one after another are a
run; each run goes into the fullest slot with room, as many as it takes, then into the next.

Best-fit-decreasing: Johnson et al. 1974; packing without cross-contamination: Krell et al., arXiv 2107.02027.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from revision_jax.config import RowConfig
from revision_jax.data.lengths import Lengths

Run = tuple[int, int]  # (pictures one after another, patches of each)


class Stretch(NamedTuple):
    """Some pictures of a run, side by side in one slot."""

    run: int
    slot: int
    offset: int  # patches
    count: int  # pictures


class Plan(NamedTuple):
    """The rows of one epoch: `batch` of them a step. Row r holds the conversations samples[first[r] : first[r + 1]]; it may be empty."""

    shapes: Int[np.ndarray, " steps"]  # number of each step's RowConfig
    first: Int[np.ndarray, " rows+1"]
    samples: Int[np.ndarray, " n"]

    @property
    def steps(self) -> int:
        return len(self.shapes)

    def row(self, row: int) -> Int[np.ndarray, " n"]:
        return self.samples[self.first[row] : self.first[row + 1]]


def slots_of(shape: RowConfig) -> list[int]:
    """Patches that each slot of a row has room for, slot after slot."""
    return [patches for count, patches in shape.slots for _ in range(count)]


def place(runs: Sequence[Run], free: list[int], sizes: Sequence[int]) -> list[Stretch] | None:
    """Where the pictures go, given the slots' sizes and what each has left; `free` is reduced. None, and `free` as it was, where they do not fit."""
    left, found = list(free), []
    for number, (count, patches) in sorted(enumerate(runs), key=lambda item: -item[1][1]):
        while count:
            room, slot = min(((room, slot) for slot, room in enumerate(left) if room >= patches), default=(0, -1))
            if slot < 0:
                return None
            some = min(count, room // patches)
            found.append(Stretch(number, slot, sizes[slot] - room, some))
            left[slot] -= some * patches
            count -= some
    free[:] = left
    return found


def placed(samples: Sequence[Sequence[Run]], shape: RowConfig) -> list[list[Stretch]]:
    """The places of the pictures of all conversations of a row. Raises ValueError where they do not fit, which no plan asks for."""
    sizes = slots_of(shape)
    free = list(sizes)
    found = [place(runs, free, sizes) for runs in samples]
    if None in found:
        raise ValueError("packing: the pictures of a planned row do not fit")
    return found


def shapes_of(lengths: Lengths, rows: Sequence[RowConfig]) -> Int[np.ndarray, " n"]:
    """For every conversation the number of the first shape that holds it; -1 for one that cannot be used or that none holds."""
    found = np.full(len(lengths), -1, np.int8)
    for number, shape in enumerate(rows):
        open_ = (found < 0) & (lengths.tokens > 0)
        fits = open_ & (lengths.tokens <= shape.length) & (lengths.visual <= shape.visual) & (lengths.labels <= shape.labels)
        sizes = slots_of(shape)
        for index in np.flatnonzero(fits):
            if place(lengths.runs(index), list(sizes), sizes) is not None:
                found[index] = number
    return found


def pack(members: Int[np.ndarray, " n"], lengths: Lengths, shape: RowConfig) -> list[list[int]]:
    """Rows of one window, each a list of conversations (numbers of `lengths`)."""
    rows: list[list[int]] = []
    room: list[list] = []  # of each row: visual tokens, labels, patches of each slot
    fullest: list[tuple[int, int]] = []  # (tokens left, row), ascending
    sizes = slots_of(shape)
    for index in members[np.argsort(-lengths.tokens[members], kind="stable")]:
        tokens, visual, labels, runs = int(lengths.tokens[index]), int(lengths.visual[index]), int(lengths.labels[index]), lengths.runs(index)
        chosen = None
        for at in range(bisect_left(fullest, (tokens, 0)), len(fullest)):
            row = fullest[at][1]
            if room[row][0] >= visual and room[row][1] >= labels and place(runs, room[row][2], sizes) is not None:
                chosen = fullest.pop(at)
                break
        if chosen is None:
            chosen = (shape.length, len(rows))
            rows.append([])
            room.append([shape.visual, shape.labels, list(sizes)])
            place(runs, room[-1][2], sizes)
        left, row = chosen
        rows[row].append(int(index))
        room[row][0] -= visual
        room[row][1] -= labels
        insort(fullest, (left - tokens, row))
    return rows


def plan(
    order: Int[np.ndarray, " n"], shapes: Int[np.ndarray, " m"], lengths: Lengths, rows: Sequence[RowConfig], batch: int, window: int, rng: np.random.Generator
) -> Plan:
    """The rows of one epoch. order: conversations in the epoch's order, as numbers of `lengths`; shapes: of `shapes_of`; batch: rows of a step."""
    steps: list[tuple[int, list[list[int]]]] = []
    for number, shape in enumerate(rows):
        members = order[shapes[order] == number]
        packed = [row for at in range(0, len(members), window) for row in pack(members[at : at + window], lengths, shape)]
        packed = [packed[i] for i in rng.permutation(len(packed))]
        packed += [[]] * (-len(packed) % batch)
        steps += [(number, packed[at : at + batch]) for at in range(0, len(packed), batch)]
    steps = [steps[i] for i in rng.permutation(len(steps))]
    sizes = [len(row) for _, step in steps for row in step]
    samples = [index for _, step in steps for row in step for index in row]
    return Plan(np.array([number for number, _ in steps], np.int8), np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), np.array(samples, np.int64))


class Filled(NamedTuple):
    """How full the rows of a plan are: shares of their tokens and of the encoder's patches that hold something."""

    rows: int
    conversations: int
    tokens: float
    patches: float


def filled(plan: Plan, lengths: Lengths, rows: Sequence[RowConfig]) -> Filled:
    count = len(plan.first) - 1
    each = count // max(plan.steps, 1)
    room = sum(rows[shape].length for shape in plan.shapes) * each
    patches = sum(sum(slots_of(rows[shape])) for shape in plan.shapes) * each
    shown = sum(number * size for index in plan.samples for number, size in lengths.runs(index))
    return Filled(count, len(plan.samples), float(lengths.tokens[plan.samples].sum() / max(room, 1)), shown / max(patches, 1))
