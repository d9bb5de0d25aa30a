"""The training loop: stages one after another, each resumable at any step.

    for every stage:  begin (copies, split, first checkpoint) or restore -> before_stage -> steps -> last checkpoint -> on_stage_end

The device is never waited for while it could compute: metrics of a step are fetched after the next one has been launched (a checkpoint is
the exception, it needs the weights themselves). Batches come from Grain's threads or processes, and are on the device before they are asked for.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain  # noqa: F401 - its import replaces `builtins.__import__` for a moment: not while a checkpoint's thread may import something
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from revision_jax.config import ConfigError, ExperimentConfig, StageConfig
from revision_jax.data.ahead import ahead
from revision_jax.data.pipeline import Batch, Examples, batches
from revision_jax.errors import UserError
from revision_jax.sharding.chips import chip_of
from revision_jax.sharding.mesh import local_rows, make_mesh
from revision_jax.sharding.parameters import axes_of
from revision_jax.sharding.rules import Rules, batch_sharding, check_batch, tree_shardings
from revision_jax.sharding.strategies import rules_named
from revision_jax.training.checkpoints import Checkpoints
from revision_jax.training.metrics import MetricsLog, cut_rows
from revision_jax.training.optimizer import Axes, make_optimizer
from revision_jax.training.profiling import Profile
from revision_jax.training.progress import Progress
from revision_jax.training.state import State, begin_stage, merge, split
from revision_jax.training.step import Loss, make_train_step, optimizer_shardings
from revision_jax.training.trackers import Tracker

METRICS = "metrics.jsonl"


class Task(NamedTuple):
    """What is trained, apart from the loop that trains it.

    init_state: traceable, makes the first state; compiled with the mesh's shardings, so that no device ever holds the whole.
    make_loss: stage -> loss(state, batch, key) -> (loss, metrics).
    make_examples: stage -> Examples; called after `before_stage`.
    load_state: shardings -> state, in place of init_state, where released weights are the start.
    flops: (stage, trainable, frozen, batch; all abstract) -> FLOPs of a step (`flops.model_flops`), asked for where the chip's peak is known.
    check: called with every stage to come before anything is written; raises for what it lacks.
    before_stage: called with (stage, state) whenever a stage is entered, also after a restart in its middle; what it leaves on disk must make
        a second call cheap. The state's arrays are valid during the call only.
    on_stage_end: each called with (stage, state) once a stage's last checkpoint is written; all again if the process dies in one of them.
    axes: (name, shape) -> logical axes of a leaf.
    """

    init_state: Callable[[], State]
    make_loss: Callable[[StageConfig], Loss]
    make_examples: Callable[[StageConfig], Examples]
    load_state: Callable[[Mapping[str, Any]], State] | None = None
    before_stage: Callable[[StageConfig, State], None] | None = None
    on_stage_end: Sequence[Callable[[StageConfig, State], None]] = ()
    axes: Axes = axes_of
    check: Callable[[StageConfig], None] | None = None
    flops: Callable[[StageConfig, State, State, Any], int] | None = None


class Result(NamedTuple):
    """Where a run ended. `stopped`: the signal that ended it early (SIGTERM, SIGINT; a checkpoint of `step` is written), or 0."""

    state: State
    stage: str
    step: int
    stopped: int


def run(
    config: ExperimentConfig,
    workdir: str | os.PathLike,
    task: Task,
    *,
    stages: Sequence[str] | None = None,
    devices: Sequence[jax.Device] | None = None,
    threads: int = 2,
    trackers: Sequence[Tracker] = (),
    profile: Profile | None = None,
) -> Result:
    """Trains the config's stages (or those named, in the config's order), going on from what `workdir` holds.

    Writes `<workdir>/checkpoints/` and, on process 0, `<workdir>/metrics.jsonl` (a row every `train.log_every` steps), which `trackers` get too. Raises
    ConfigError for what cannot run on the mesh, UserError for a workdir of another config, NotFinite for a loss or gradient that is no number.
    """
    order = [stage.name for stage in config.train.stages]
    chosen = [stage for stage in config.train.stages if stages is None or stage.name in stages]
    unknown = sorted(set(stages or ()) - set(order))
    if unknown or not chosen:
        raise ConfigError(f"train.stages: no stage {', '.join(unknown) or 'to train'}; there are {', '.join(order) or 'none'}")
    mesh, rules = make_mesh(config.mesh, devices), rules_named(config.mesh.rules)
    abstract = jax.eval_shape(task.init_state)
    for stage in chosen:  # all of them now, not after hours of the first
        check_batch(f"stages.{stage.name}.batch", stage.batch, mesh, rules, stage.accumulate)
        if task.check is not None:
            task.check(stage)
        jax.eval_shape(lambda state, stage=stage: begin_stage(state, stage, config.train.base_dtype), abstract)
    shardings = tree_shardings(abstract, mesh, rules, task.axes)
    abstract = _placed(abstract, shardings)
    metrics = Path(workdir) / METRICS

    with Checkpoints(workdir, config) as checkpoints, _StopSignal() as stop, Progress(sum(stage.steps for stage in chosen)) as progress:
        found = checkpoints.latest()
        state = None
        result = None
        for stage in chosen:
            if found is not None and order.index(stage.name) < order.index(found[0]):
                progress.advance(stage.steps)  # an earlier run has gone past it
                continue
            here = _StageRun(config, stage, task, mesh, rules, shardings, checkpoints, trackers, profile)
            if found is not None and found[0] == stage.name:
                here.restore(found[1], abstract)
                progress.advance(found[1])
            else:
                if state is None:
                    state = _first_state(config, task, checkpoints, found, abstract, shardings)
                here.begin(state)
            cut_rows(metrics, order[: order.index(stage.name)] if found else [], stage.name, here.step)
            stopped = here.train(metrics, stop, progress, threads)
            result = Result(merge(here.trainable, here.frozen), stage.name, here.step, stopped)
            if stopped:
                return result
            found, state = (stage.name, here.step), result.state
    if result is None:
        raise UserError(f"{workdir}: is at stage {found[0]} already, after {chosen[-1].name}; use another workdir to train that one again")
    return result


def _placed(abstract: Any, shardings: Any) -> Any:
    """Shapes and types with the shardings they will have."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract, shardings)


def _first_state(config: ExperimentConfig, task: Task, checkpoints: Checkpoints, found: tuple[str, int] | None, abstract: State, shardings: State) -> State:
    """The state before the first stage that begins now: fresh, or as the run before left it at the end of an earlier stage."""
    if found is None:
        if task.load_state is not None:
            return task.load_state(shardings)
        return jax.jit(task.init_state, out_shardings=shardings)()
    name, step = found
    earlier = next(stage for stage in config.train.stages if stage.name == name)
    if step < earlier.steps:
        raise UserError(f"{checkpoints.root.parent}: stage {name} is at step {step} of {earlier.steps}; train it to its end before a later stage")
    trainable, frozen = split(abstract, earlier.train)
    restored = checkpoints.restore(name, step, trainable, frozen, None)
    return merge(restored.trainable, restored.frozen)


class _StageRun:
    """One stage on its way: its arrays, its compiled step, and where it is."""

    def __init__(
        self, config: ExperimentConfig, stage: StageConfig, task: Task, mesh: Mesh, rules: Rules, shardings: State, checkpoints: Checkpoints,
        trackers: Sequence[Tracker] = (), profile: Profile | None = None,
    ):
        self.config, self.stage, self.task, self.mesh, self.rules, self.checkpoints = config, stage, task, mesh, rules, checkpoints
        self.trackers, self.profile = trackers, profile
        self._counted: dict[str, int] = {}  # FLOPs by the shapes of a batch
        self.trainable_shardings, self.frozen_shardings = split(shardings, stage.train)
        self.batch_sharding = batch_sharding(mesh, rules)
        self.optimizer = make_optimizer(stage, task.axes)
        self.trainable: State = {}
        self.frozen: State = {}
        self.opt_state: Any = None
        self.opt_shardings: Any = None
        self.step = 0  # steps done

    def begin(self, state: State) -> None:
        """From the whole state before the stage, which is given up: copies made, first checkpoint written."""
        trainable, frozen = split(begin_stage(state, self.stage, self.config.train.base_dtype), self.stage.train)
        self.trainable, self.frozen = jax.device_put(trainable, self.trainable_shardings), jax.device_put(frozen, self.frozen_shardings)
        self.opt_shardings = optimizer_shardings(self.optimizer, self.trainable, self.trainable_shardings, self.mesh)
        self.opt_state = jax.jit(self.optimizer.init, out_shardings=self.opt_shardings)(self.trainable)
        self.checkpoints.save(self.stage.name, 0, self.trainable, self.opt_state, self.frozen)

    def restore(self, step: int, abstract: State) -> None:
        """From the stage's own checkpoint of `step`."""
        trainable, frozen = split(abstract, self.stage.train)
        self.opt_shardings = optimizer_shardings(self.optimizer, trainable, self.trainable_shardings, self.mesh)
        opt_state = _placed(jax.eval_shape(self.optimizer.init, trainable), self.opt_shardings)
        restored = self.checkpoints.restore(self.stage.name, step, trainable, frozen, opt_state)
        self.trainable, self.frozen, self.opt_state, self.step = restored.trainable, restored.frozen, restored.opt_state, step

    def train(self, metrics_file: Path, stop: _StopSignal, progress: Progress, threads: int) -> int:
        """Takes the steps that are left, then the stage's callbacks. Returns the signal that asked to stop, or 0."""
        stage, train = self.stage, self.config.train
        if self.checkpoints.is_done(stage.name):
            return 0
        if self.task.before_stage is not None:
            self.task.before_stage(stage, merge(self.trainable, self.frozen))
        trained = sum(leaf.size for leaf in jax.tree.leaves(self.trainable))
        parts = f" in {stage.accumulate} parts" if stage.accumulate > 1 else ""
        told = f"{stage.steps} steps of {stage.batch} rows{parts}, {trained:,} numbers trained ({', '.join(stage.train)})"
        progress.say(f"stage {stage.name} begins at step {self.step}: {told}")
        if self.step < stage.steps:
            chip = chip_of(self.mesh.devices.flat[0].device_kind)
            log = MetricsLog(
                metrics_file, stage.name, stage.steps, train.log_every, batch=stage.batch, skip=train.not_finite == "skip",
                peak=None if chip is None else chip.flops * self.mesh.size, trackers=self.trackers, before=self._before(),
            )  # fmt: skip
            stopped = self._steps(log, stop, progress, threads)
            if stopped:
                progress.say(f"stage {stage.name} stopped at step {self.step} of {stage.steps}, saved; run the same command to go on")
                return stopped
        for callback in self.task.on_stage_end:
            callback(stage, merge(self.trainable, self.frozen))
        self.checkpoints.mark_done(stage.name)
        progress.say(f"stage {stage.name} ended at step {self.step}")
        return 0

    def _before(self) -> int:
        """Steps of the stages before this one."""
        names = [stage.name for stage in self.config.train.stages]
        return sum(stage.steps for stage in self.config.train.stages[: names.index(self.stage.name)])

    def _flops(self, batch: dict[str, jax.Array], peak: float | None) -> int:
        """FLOPs of a step over this batch; 0 where they would be compared with nothing."""
        if peak is None or self.task.flops is None:
            return 0
        bare = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        key = str({name: x.shape for name, x in batch.items()})
        if key not in self._counted:
            self._counted[key] = self.task.flops(self.stage, bare(self.trainable), bare(self.frozen), bare(batch))
        return self._counted[key]

    def _steps(self, log: MetricsLog, stop: _StopSignal, progress: Progress, threads: int) -> int:
        stage, train, data = self.stage, self.config.train, self.config.data
        shardings = (self.trainable_shardings, self.frozen_shardings, self.opt_shardings)
        train_step = make_train_step(self.config, stage, self.task.make_loss(stage), self.optimizer, self.mesh, self.rules, *shardings)
        stream = batches(
            self.task.make_examples(stage), batch=stage.batch, steps=stage.steps, start=self.step, rows=local_rows(self.batch_sharding, stage.batch),
            workers=data.workers, threads=threads, prefetch=data.prefetch,
        )
        placed = ahead((self._put(batch) for batch in stream), depth=1)  # the copy to the device, too, is made while it computes
        pending: tuple[int, dict[str, jax.Array], int] | None = None
        profile = self.profile

        def fetch() -> None:
            row = log.add(*pending)
            if row is not None:
                progress.report(row)

        try:
            while self.step < stage.steps:
                waiting = time.perf_counter()
                batch = next(placed)
                log.wait(time.perf_counter() - waiting)
                if profile is not None:
                    profile.before(stage.name, self.step + 1, self.trainable)
                self.trainable, self.opt_state, metrics = train_step(self.trainable, self.frozen, self.opt_state, batch, np.int32(self.step))
                self.step += 1
                if profile is not None:
                    profile.after(self.step, self.trainable)
                if pending is not None:
                    fetch()
                pending = (self.step, metrics, self._flops(batch, log.peak))
                progress.advance()
                stopped = stop.requested()
                if stopped or self.step == stage.steps or self.step % train.checkpoint_every == 0:
                    fetch()  # before anything is saved: a checkpoint never holds weights that are not finite
                    pending = None
                    best = log.since_saved(stage.best) if train.keep_best else None
                    self.checkpoints.save(stage.name, self.step, self.trainable, self.opt_state, best=best)
                if stopped and self.step < stage.steps:
                    return stopped
        finally:
            if profile is not None:
                profile.stop()
            placed.close()
            getattr(stream, "close", lambda: None)()
        return 0

    def _put(self, batch: Batch) -> dict[str, jax.Array]:
        """This process' rows as arrays of the whole batch."""
        return {name: jax.make_array_from_process_local_data(self.batch_sharding, value) for name, value in batch.items()}


class _StopSignal:
    """SIGTERM or Ctrl-C: the step under way is finished and saved, then the run ends. A second Ctrl-C ends it at once.

    With several processes JAX's own preemption service agrees on one step, whichever process the signal (SIGTERM) reached.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.calls = 0
        self.former: dict[int, Any] = {}

    def __enter__(self) -> _StopSignal:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.former = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.signal = number
        signal.signal(number, self.former[number])

    def requested(self) -> int:
        """The signal that came, or 0. Called once a step, on every process alike."""
        self.calls += 1
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self.calls):
            self.signal = signal.SIGTERM
        return int(self.signal)
