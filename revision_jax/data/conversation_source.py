"""The examples of a stage of conversations: packed rows, each a pure function of its index.

Row r of step s is example s * batch + r. Which conversations it holds is planned from lengths alone (`packing.plan`): an epoch's order is cut into chapters,
each of which becomes a whole number of steps. Every process and every worker plans the same, so a run starts at any step, and the rows of several processes
together are those of one. Chapters are planned as they come; to begin at a late step, all before it are planned first.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from revision_jax.config import ConfigError, ExperimentConfig, StageConfig
from revision_jax.data.conversation import ConversationReader, Sample
from revision_jax.data.datasets.build import Built, read
from revision_jax.data.datasets.conversations import Conversation
from revision_jax.data.lengths import SPLIT, Lengths, joined
from revision_jax.data.mixture import epoch_order
from revision_jax.data.packed_row import Arrays, packed_row
from revision_jax.data.packing import Plan, filled, plan, shapes_of
from revision_jax.errors import UserError

CHAPTER = 65_536  # conversations that are planned at a time
KEPT = 2  # chapters whose plans are kept: threads read ahead into the next


class ConversationSource:
    """Examples of a `conversation` stage (arrays of `packed_row`). Workers pickle it: the datasets are opened again in each."""

    def __init__(self, config: ExperimentConfig, stage: StageConfig, reader: ConversationReader, datasets: Sequence[Built], lengths: Sequence[Lengths]):
        """datasets, lengths: those of the mixture, in its order. Raises ConfigError where no conversation fits into any row."""
        self.stage, self.reader, self.datasets, self.seed = stage, reader, list(datasets), (config.train.seed, zlib.crc32(stage.name.encode()))
        self.asked, self.before_encoder = stage.conversation, config.pruner.where == "before_encoder"
        self.lengths = joined(list(lengths))
        self.starts = np.cumsum([0, *map(len, lengths)])
        self.shapes = shapes_of(self.lengths, self.asked.rows)
        self.members = [start + np.flatnonzero(self.shapes[start:end] >= 0) for start, end in zip(self.starts, self.starts[1:], strict=False)]
        for (name, _), own in zip(self.asked.mixture, self.members, strict=True):
            if not len(own):
                raise ConfigError(f"stages.{stage.name}.conversation.rows: none of the conversations of {name} fits into a row; allow longer ones")
        self._forget()
        self.size = len(self._order(0))  # conversations of an epoch, of any alike

    def example(self, index: int) -> Arrays:
        """One row. Raises UserError for media that cannot be read any more, or that have changed since they were measured."""
        step, row = divmod(int(index), self.stage.batch)
        planned, step = self.chapter_of(step)
        shape = self.asked.rows[planned.shapes[step]]
        members = planned.row(step * self.stage.batch + row)
        samples = [self._sample(int(member)) for member in members]
        return packed_row(samples, [self.lengths.runs(member) for member in members], shape, self.reader.vision, self.before_encoder)

    def conversations(self, step: int) -> list[list[tuple[int, int]]]:
        """(dataset, number in it) of the conversations in each row of a step."""
        planned, step = self.chapter_of(step)
        rows = (planned.row(step * self.stage.batch + row) for row in range(self.stage.batch))
        return [[self._where(int(member)) for member in row] for row in rows]

    @property
    def chapters(self) -> int:
        """Of an epoch."""
        return -(-self.size // CHAPTER)

    def chapter_of(self, step: int) -> tuple[Plan, int]:
        """The plan of the chapter in which a step lies, and the step's number in it."""
        with self._lock:
            chapter = int(np.searchsorted(self._ends, step, side="right"))
            while chapter >= len(self._ends):
                self._ends.append((self._ends[-1] if self._ends else 0) + self._plan(len(self._ends)).steps)
                chapter = int(np.searchsorted(self._ends, step, side="right"))
            return self._plan(chapter), step - (self._ends[chapter - 1] if chapter else 0)

    def report(self) -> list[str]:
        """What an epoch is, in a few lines: how many conversations of each dataset, how many steps, how full its rows (told by its first chapter)."""
        planned, chapters = self.chapter_of(0)[0], self.chapters
        seen = np.bincount(np.searchsorted(self.starts, self._order(0), side="right") - 1, minlength=len(self.datasets))
        lines = []
        for number, (name, weight) in enumerate(self.asked.mixture):
            own = slice(self.starts[number], self.starts[number + 1])
            unreadable, long = int((self.lengths.tokens[own] == 0).sum()), int(((self.shapes[own] < 0) & (self.lengths.tokens[own] > 0)).sum())
            left_out = [f"{count:,} {why}" for count, why in ((unreadable, "cannot be read"), (long, "are too long for any row")) if count]
            lines.append(f"{name}: {seen[number]:,} conversations an epoch (weight {weight:g})" + (f"; {' and '.join(left_out)}" if left_out else ""))
        full = filled(planned, self.lengths, self.asked.rows)
        each = full.conversations / max(planned.steps, 1)
        shares = f"filled {full.tokens:.1%}" + (f", the encoder's slots {full.patches:.1%}" if full.patches else "")
        steps = f"{planned.steps:,}" if chapters == 1 else f"about {round(seen.sum() / each):,}"
        return [*lines, f"an epoch is {steps} steps of {self.stage.batch} rows ({each:.1f} conversations a step); rows are {shares}"]

    # ---- parts

    def _where(self, member: int) -> tuple[int, int]:
        dataset = int(np.searchsorted(self.starts, member, side="right")) - 1
        return dataset, member - int(self.starts[dataset])

    def _sample(self, member: int) -> Sample:
        dataset, number = self._where(member)
        with self._lock:
            if dataset not in self._open:
                self._open[dataset] = read(self.datasets[dataset], SPLIT)
        sample = self.reader.read(Conversation.of(self._open[dataset][number]))
        found = len(sample.ids), int(sample.places.sum()), int(sample.learnt.sum())
        if found != tuple(int(getattr(self.lengths, name)[member]) for name in ("tokens", "visual", "labels")):
            where = self.datasets[dataset].path / "lengths"
            raise UserError(f"{self.datasets[dataset].path}: conversation {number} has changed since it was measured; delete {where}, it is made again")
        return sample

    def _order(self, epoch: int) -> Int[np.ndarray, " n"]:
        """Of an epoch's conversations. One epoch's is kept."""
        with self._lock:
            if self._ordered is None or self._ordered[0] != epoch:
                weights = [weight for _, weight in self.asked.mixture]
                self._ordered = epoch, epoch_order(self.members, weights, self.seed, epoch)
            return self._ordered[1]

    def _plan(self, chapter: int) -> Plan:
        if chapter not in self._plans:
            epoch, part = divmod(chapter, self.chapters)
            order = self._order(epoch)[part * CHAPTER : (part + 1) * CHAPTER]
            rng = np.random.default_rng([*self.seed, epoch, part + 1])
            self._plans[chapter] = plan(order, self.shapes, self.lengths, self.asked.rows, self.stage.batch, self.asked.window, rng)
            while len(self._plans) > KEPT:
                self._plans.popitem(last=False)
        return self._plans[chapter]

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._open: dict[int, Any] = {}
        self._ordered: tuple[int, np.ndarray] | None = None
        self._plans: OrderedDict[int, Plan] = OrderedDict()
        self._ends: list[int] = []  # of each chapter: the step behind its last

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_open", "_ordered", "_plans", "_ends")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()
