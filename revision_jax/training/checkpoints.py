"""Training checkpoints (Orbax), and what a run may be resumed with.

    <workdir>/checkpoints/<number>-<stage>/0        trained part, optimizer state, frozen part, run
    <workdir>/checkpoints/<number>-<stage>/<step>   trained part, optimizer state, run
    <workdir>/checkpoints/<number>-<stage>/done     the stage is over, its callbacks included

A step's folder appears by a rename once all of it is written, so a kill at any moment leaves the last whole checkpoint. The frozen part is
written once, at the start of its stage. `run` holds the stage, the step, the seed and the config: batches are a function of (seed, stage,
step), so that is all a run needs to go on with the very next batch. The first checkpoint and the last few of every stage are kept, so a
stage can be trained again by deleting its folder and those after it.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from revision_jax import paths
from revision_jax.config import ConfigError, ExperimentConfig
from revision_jax.errors import UserError
from revision_jax.training.identity import identity

# What may change between two runs of one training: how it is run and reported, and what only answering uses.
FREE = (
    "name",
    "mesh",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_best",
    "train.not_finite",
    "train.log_every",
    "data.workers",
    "data.prefetch",
    "data.validation_videos",
    "data.test_videos",
    "decoder.scan",
    "decoder.remat",
    "decoder.attention",
    "grounding.merge",
    "grounding.merge_iou",
    "grounding.confidence",
    "grounding.threshold",
    "grounding.prefix_cache_mb",
)
FREE_OF_STAGE = ("best", "best_is")
FREE_OF_LEVEL = ("batch", "beam", "spans", "min_duration_s")


class Restored(NamedTuple):
    stage: str
    step: int
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    opt_state: Any


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    """Every scalar of a config by its dotted name; items of a list by their `name` where they have one."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        if not value:
            return {where: ()}
        items = [(item["name"] if isinstance(item, Mapping) and "name" in item else str(i), item) for i, item in enumerate(value)]
    else:
        return {where: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flat(item, f"{where}.{key}" if where else key))
    return flat


def _matters(name: str, stages: set[str]) -> bool:
    if any(name == free or name.startswith(free + ".") for free in FREE):
        return False
    parts = name.split(".")
    if parts[:2] == ["train", "stages"] and len(parts) > 2:
        return parts[2] in stages and parts[3] not in FREE_OF_STAGE
    return not (parts[:2] == ["grounding", "levels"] and len(parts) == 4 and parts[3] in FREE_OF_LEVEL)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], stages: set[str]) -> list[str]:
    """Fields (dotted) of two configs (`to_dict`) that differ in what a resumed training depends on, as "field: was 1, is 2".

    stages: names of the stages begun so far; those still to come may change, as may how a training is run (`FREE`).
    """
    before, after = _flat(old), _flat(new)
    missing = "nothing"
    names = [name for name in {**before, **after} if _matters(name, stages) and before.get(name, missing) != after.get(name, missing)]
    return [f"{name}: was {before.get(name, missing)}, is {after.get(name, missing)}" for name in names]


def filled(values: dict[str, Any]) -> dict[str, Any]:
    """A stored config with the defaults of fields that are newer than it: a new field's default is what was there before it. As it is, if it cannot be read."""
    try:
        return ExperimentConfig.from_dict(values).to_dict()
    except ConfigError:
        return values


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their path, so that what is stored does not depend on the classes an optimizer nests its state in."""
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


class Checkpoints:
    """The checkpoints of one working directory. Close it (or use it in a `with`) so that a save in the background is finished."""

    def __init__(self, workdir: str | os.PathLike, config: ExperimentConfig):
        self.config = config
        self.root = Path(workdir).absolute() / "checkpoints"
        self.names = [stage.name for stage in config.train.stages]
        self._managers: dict[str, ocp.CheckpointManager] = {}
        self._bases: dict[str, str] = {}  # identity of the frozen part, by stage

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for saves under way. Raises UserError if one failed."""
        managers, self._managers = self._managers, {}
        for stage, manager in managers.items():
            with self._writing(stage):
                manager.close()

    def directory(self, stage: str) -> Path:
        return self.root / f"{self.names.index(stage):02d}-{stage}"

    def _manager(self, stage: str) -> ocp.CheckpointManager:
        if stage not in self._managers:
            train, lowest = self.config.train, self._worst(stage) > 0
            told_by = operator.itemgetter("best")
            best = checkpoint_managers.BestN(get_metric_fn=told_by, reverse=lowest, n=train.keep_best, keep_checkpoints_without_metrics=False)
            keep = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(train.keep), checkpoint_managers.CustomSteps([0]), best])
            measured = {"best_fn": told_by} if train.keep_best else {}
            options = ocp.CheckpointManagerOptions(preservation_policy=keep, create=True, cleanup_tmp_directories=True, **measured)
            handlers = {**{item: ocp.StandardCheckpointHandler() for item in ("trainable", "opt_state", "frozen")}, "run": ocp.JsonCheckpointHandler()}
            self._managers[stage] = ocp.CheckpointManager(epath.Path(self.directory(stage)), options=options, item_handlers=handlers)
        return self._managers[stage]

    @contextlib.contextmanager
    def _writing(self, stage: str) -> Iterator[None]:
        """Full disks and the like as one line; TensorStore reports them as ValueError, at the next call after a save in the background."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and "No space left" not in str(error) and "Disk quota" not in str(error):
                raise
            raise UserError(f"{self.directory(stage)}: checkpoint could not be written ({' '.join(str(error).split())[:300]})") from error

    # ---- what there is

    def latest(self) -> tuple[str, int] | None:
        """(stage, step) of the newest checkpoint, or None in a fresh directory.

        Raises UserError if the run there was made by a config that differs in what matters, or has a stage this config does not have.
        """
        found = sorted(path.name for path in self.root.iterdir() if path.is_dir()) if self.root.is_dir() else []
        known = {self.directory(name).name: name for name in self.names}
        for folder in reversed(found):
            if folder not in known:
                raise UserError(f"{self.root / folder}: not a stage of this config ({', '.join(known)}); use another workdir or the config it was begun with")
            stage = known[folder]
            step = self._manager(stage).latest_step()
            if step is not None:
                self._check(stage, step)
                return stage, int(step)
        return None

    def _check(self, stage: str, step: int) -> None:
        run = self._run(stage, step)
        begun = set(self.names[: self.names.index(stage) + 1])
        wrong = differences(filled(run["config"]), self.config.to_dict(), begun)
        if wrong:
            raise UserError(f"{self.root.parent}: was begun with another config ({'; '.join(wrong)}); use another workdir or set these back")

    def _run(self, stage: str, step: int) -> dict[str, Any]:
        return self._manager(stage).restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]

    def best(self, stage: str) -> int | None:
        """The step of the best checkpoint of a stage that is still there; None where none was measured."""
        manager, worst = self._manager(stage), self._worst(stage)
        manager.wait_until_finished()
        measured = {step: found["best"] for step in manager.all_steps() if (found := manager.metrics(step)) and found["best"] != worst}
        return (min if worst > 0 else max)(measured, key=measured.get) if measured else None

    def _worst(self, stage: str) -> float:
        """What a checkpoint without a measure counts as."""
        return math.inf if self.config.train.stages[self.names.index(stage)].best_is == "lowest" else -math.inf

    def is_done(self, stage: str) -> bool:
        return (self.directory(stage) / "done").is_file()

    def mark_done(self, stage: str) -> None:
        """Notes that a stage is over, callbacks included; waits for its last save first."""
        with self._writing(stage):
            self._manager(stage).wait_until_finished()
        if jax.process_index() == 0:
            (self.directory(stage) / "done").touch()

    # ---- writing and reading

    def save(self, stage: str, step: int, trainable: dict, opt_state: Any, frozen: dict | None = None, best: float | None = None) -> None:
        """Writes a checkpoint in the background; arrays are copied before this returns, so the caller may donate them.

        `frozen` is given at step 0, the stage's start, and only there. best: what the stage's best checkpoints are told by.
        """
        if frozen is not None:
            self._bases[stage] = identity(frozen)
        run = {"stage": stage, "step": step, "seed": self.config.train.seed, "base": self._bases.get(stage), "config": self.config.to_dict()}
        items: dict[str, Any] = {"run": ocp.args.JsonSave(run)}
        for name, tree in (("trainable", trainable), ("opt_state", opt_state), ("frozen", frozen)):
            leaves = _named_leaves(tree) if name == "opt_state" else paths.flatten(tree or {})
            if leaves:
                items[name] = ocp.args.StandardSave(leaves)
        with self._writing(stage):
            metrics = {"best": self._worst(stage) if best is None else best} if self.config.train.keep_best else None
            self._manager(stage).save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)

    def restore(self, stage: str, step: int, trainable: dict, frozen: dict, opt_state: Any) -> Restored:
        """Reads a checkpoint into the shapes and shardings of the given trees (arrays or ShapeDtypeStructs with shardings); types are as stored.

        `opt_state` may be None: then it is not read. The mesh may be another one than at saving. Raises UserError if tensors do not match, all of them listed,
        and if the frozen ones are not those that the checkpoint was trained on.
        """
        base = paths.unflatten(self._read(stage, 0, "frozen", paths.flatten(frozen)))
        self._bases[stage], wanted = identity(base), self._run(stage, step).get("base")
        if wanted not in (None, self._bases[stage]):
            where = self.directory(stage) / str(step)
            raise UserError(f"{where}: was trained on frozen weights {wanted}, but {where.parent / '0'} holds {self._bases[stage]}; put its own back")
        return Restored(
            stage, step,
            paths.unflatten(self._read(stage, step, "trainable", paths.flatten(trainable))),
            base,
            jax.tree.unflatten(jax.tree.structure(opt_state), list(self._ordered(stage, step, opt_state))) if opt_state is not None else None,
        )

    def _ordered(self, stage: str, step: int, opt_state: Any) -> list[Any]:
        wanted = _named_leaves(opt_state)
        read = self._read(stage, step, "opt_state", wanted)
        return [read[name] for name in wanted]

    def _read(self, stage: str, step: int, item: str, wanted: dict[str, Any]) -> dict[str, Any]:
        if not wanted:
            return {}
        manager, where = self._manager(stage), self.directory(stage) / str(step)
        manager.wait_until_finished()
        try:
            stored = manager.item_metadata(step)[item]
            shapes = {name: tuple(leaf.shape) for name, leaf in stored.items()}
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{where}: not a whole checkpoint, {item!r} is missing") from error
        expected = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
        wrong = [f"{name} stored as {shapes.get(name, 'nothing')}, wanted {expected.get(name, 'nothing')}" for name in sorted(set(shapes) | set(expected))
                 if shapes.get(name) != expected.get(name)]
        if wrong:
            raise UserError(f"{where}: {item} does not match the model: {'; '.join(wrong)}")
        abstract = {name: jax.ShapeDtypeStruct(leaf.shape, stored[name].dtype, sharding=leaf.sharding) for name, leaf in wanted.items()}
        return manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))[item]
