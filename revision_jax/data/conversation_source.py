"""The examples of a stage of conversations: packed rows, each a pure function of its index.

Row r of step s is example s * batch + r. Which conversations it holds is planned an epoch at a time (`packing.plan`), from lengths alone; an epoch is a whole
number of steps, and the next one follows without a seam. Every process and every worker plans the same, so a run starts at any step, and the rows of several
processes together are those of one.
"""

from __future__ import annotations

import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from revision_jax.config import ConfigError, ExperimentConfig, StageConfig
from revision_jax.data.conversation import ConversationReader, Sample
from revision_jax.data.datasets.build import Built, read
from revision_jax.data.datasets.conversations import Conversation
from revision_jax.data.lengths import SPLIT, Lengths, joined
from revision_jax.data.mixture import epoch_order
from revision_jax.data.packed_row import Arrays, packed_row
from revision_jax.data.packing import Plan, filled, plan, shapes_of
from revision_jax.errors import UserError

PLANS = 2  # epochs whose plans are kept: workers read ahead into the next


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

    def example(self, index: int) -> Arrays:
        """One row. Raises UserError for media that cannot be read any more, or that have changed since they were measured."""
        step, row = divmod(int(index), self.stage.batch)
        planned, step = self.plan_of(step)
        shape = self.asked.rows[planned.shapes[step]]
        members = planned.row(step * self.stage.batch + row)
        samples = [self._sample(int(member)) for member in members]
        return packed_row(samples, [self.lengths.runs(member) for member in members], shape, self.reader.vision, self.before_encoder)

    def conversations(self, step: int) -> list[list[tuple[int, int]]]:
        """(dataset, number in it) of the conversations in each row of a step."""
        planned, step = self.plan_of(step)
        rows = (planned.row(step * self.stage.batch + row) for row in range(self.stage.batch))
        return [[self._where(int(member)) for member in row] for row in rows]

    def plan_of(self, step: int) -> tuple[Plan, int]:
        """The plan of the epoch in which a step lies, and the step's number in it."""
        with self._lock:
            epoch = int(np.searchsorted(self._ends, step, side="right"))
            while epoch >= len(self._ends):
                self._ends.append((self._ends[-1] if self._ends else 0) + self._plan(len(self._ends)).steps)
                epoch = int(np.searchsorted(self._ends, step, side="right"))
            return self._plan(epoch), step - (self._ends[epoch - 1] if epoch else 0)

    def report(self) -> list[str]:
        """What an epoch is, in a few lines: how many conversations of each dataset, how many steps, how full its rows."""
        planned = self.plan_of(0)[0]
        seen = Counter(self._where(int(member))[0] for member in planned.samples)
        lines = []
        for number, (name, weight) in enumerate(self.asked.mixture):
            own = slice(self.starts[number], self.starts[number + 1])
            unreadable, long = int((self.lengths.tokens[own] == 0).sum()), int(((self.shapes[own] < 0) & (self.lengths.tokens[own] > 0)).sum())
            left_out = [f"{count:,} {why}" for count, why in ((unreadable, "cannot be read"), (long, "are too long for any row")) if count]
            lines.append(f"{name}: {seen[number]:,} conversations an epoch (weight {weight:g})" + (f"; {' and '.join(left_out)}" if left_out else ""))
        full = filled(planned, self.lengths, self.asked.rows)
        each = full.conversations / max(planned.steps, 1)
        shares = f"filled {full.tokens:.1%}" + (f", the encoder's slots {full.patches:.1%}" if full.patches else "")
        return [*lines, f"an epoch is {planned.steps:,} steps of {self.stage.batch} rows ({each:.1f} conversations a step); rows are {shares}"]

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

    def _plan(self, epoch: int) -> Plan:
        if epoch not in self._plans:
            order = epoch_order(self.members, [weight for _, weight in self.asked.mixture], self.seed, epoch)
            rng = np.random.default_rng([*self.seed, epoch, len(self.members)])
            self._plans[epoch] = plan(order, self.shapes, self.lengths, self.asked.rows, self.stage.batch, self.asked.window, rng)
            while len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        return self._plans[epoch]

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._open: dict[int, Any] = {}
        self._plans: OrderedDict[int, Plan] = OrderedDict()
        self._ends: list[int] = []  # of each epoch: the step behind its last

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_open", "_plans", "_ends")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()
