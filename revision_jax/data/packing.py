"""Packing conversations of unequal length into rows of static shapes, planned from their lengths alone: a pure function of the lengths and a seed.

A row (`RowConfig`) has room for tokens, for visual tokens among them, for learnt tokens, and for pictures in the encoder's slots. A conversation belongs
to the first shape that holds it. All of a shape's conversations, in their order, are cut into windows; each window is packed best-fit-decreasing: the
longest first, each into the fullest row that still holds it. Rows are shuffled, filled up to whole steps with empty ones, and the steps of all shapes
shuffled again:

    order   c a d b f e ...     windows of shape 0: [c a d] [b f e]     rows: {c d} {a} | {b e} {f}     steps of 2 rows: ({f} {c d}) ({b e} {a})

So every conversation is shown once, and a step has one shape.

Pictures share slots: the encoder's attention is confined to a picture by segment ids, and costs what a slot costs. Equal pictures one after another are a
run; each run goes into the fullest slot with room, as many as it takes, then into the next.

Best-fit-decreasing: Johnson et al. 1974; packing without cross-contamination: Krell et al., arXiv 2107.02027.
"""

from __future__ import annotations

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
    """Rows: `batch` of them a step. Row r holds the conversations samples[first[r] : first[r + 1]]; it may be empty."""

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
        for room, slot in sorted((room, slot) for slot, room in enumerate(left) if room >= patches):
            some = min(count, room // patches)
            found.append(Stretch(number, slot, sizes[slot] - room, some))
            left[slot] -= some * patches
            count -= some
            if not count:
                break
        if count:
            return None
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
    runs = np.diff(lengths.first)
    for number, shape in enumerate(rows):
        sizes = slots_of(shape)
        fits = (found < 0) & (lengths.tokens > 0)
        fits &= (lengths.tokens <= shape.length) & (lengths.visual <= shape.visual) & (lengths.labels <= shape.labels)
        single = np.flatnonzero(fits & (runs == 1))  # nearly all: equal pictures alone, whose number a formula tells
        own = lengths.first[single]
        room = sum((count * (patches // lengths.patches[own]) for count, patches in shape.slots), np.zeros(len(single), np.int64))
        fits[single] = lengths.pictures[own] <= room
        for index in np.flatnonzero(fits & (runs > 1)):
            fits[index] = place(lengths.runs(index), list(sizes), sizes) is not None
        found[fits] = number
    return found


def pack(members: Int[np.ndarray, " n"], lengths: Lengths, shape: RowConfig) -> list[list[int]]:
    """Rows of one window, each a list of conversations (numbers of `lengths`)."""
    rows: list[list[int]] = []
    slots: list[list[int]] = []  # patches that each slot of a row has left
    sizes = slots_of(shape)
    whole = (shape.length, shape.visual, shape.labels, sum(sizes), max(sizes, default=0))
    left = np.zeros((len(members), len(whole)), np.int64)  # of each row: tokens, visual tokens, labels, patches, patches of its emptiest slot
    for index in members[np.argsort(-lengths.tokens[members], kind="stable")]:
        runs = lengths.runs(index)
        patches = sum(count * size for count, size in runs)
        needed = (lengths.tokens[index], lengths.visual[index], lengths.labels[index], patches, max((size for _, size in runs), default=0))
        fitting = np.flatnonzero((left[: len(rows)] >= needed).all(1))
        for row in fitting[np.argsort(left[fitting, 0], kind="stable")]:  # the fullest first
            if place(runs, slots[row], sizes) is not None:
                break
        else:
            row = len(rows)
            left[row] = whole
            rows.append([])
            slots.append(list(sizes))
            place(runs, slots[row], sizes)
        rows[row].append(int(index))
        left[row, :4] -= needed[:4]
        left[row, 4] = max(slots[row], default=0)
    return rows


def plan(
    order: Int[np.ndarray, " n"], shapes: Int[np.ndarray, " m"], lengths: Lengths, rows: Sequence[RowConfig], batch: int, window: int, rng: np.random.Generator
) -> Plan:
    """Steps that hold the conversations of `order` (numbers of `lengths`) once. shapes: of `shapes_of`; batch: rows of a step."""
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
