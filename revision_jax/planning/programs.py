"""The programs of a config that are planned: every stage's train step, and all that answering compiles. They are the ones that run, not models of them.

A program is lowered for a mesh whose devices need not be here: all arguments are abstract. The train step is `training.step.make_train_step` with the stage's
own loss and optimizer over the batch that `data.batch_shapes` describes; a stage of conversations has one for each shape of its rows. The programs of answering
are `grounding.program_shapes`, with bfloat16 weights where the decoder computes in it, as they are loaded.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from revision_jax.config import ConfigError, ExperimentConfig, StageConfig
from revision_jax.data.batch_shapes import batch_shapes
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.grounding.level_functions import LevelFunctions, level_state
from revision_jax.grounding.program_shapes import ProgramShape, program_shapes
from revision_jax.models.revision import abstract_state, first_state
from revision_jax.sharding.activations import on_mesh
from revision_jax.sharding.rules import batch_sharding, check_batch, mesh_size, tree_shardings
from revision_jax.sharding.strategies import rules_named
from revision_jax.training.flops import model_flops, product_flops
from revision_jax.training.optimizer import make_optimizer
from revision_jax.training.state import begin_stage, split
from revision_jax.training.step import make_train_step, optimizer_shardings
from revision_jax.training.task import constants, loss_of


@dataclass(frozen=True)
class Program:
    """One program. rows: examples, windows or questions of one call; positions: slots of the decoder that one call fills, 0 where it runs none."""

    name: str
    kind: Literal["train", "answer"]
    rows: int
    positions: int
    config: ExperimentConfig
    tokenizer: Tokenizer
    stage: StageConfig | None = None  # train
    shapes: int = 0  # train: which of the stage's batch shapes
    shape: ProgramShape | None = None  # answer

    def lowered(self, mesh: Mesh) -> tuple[jax.stages.Lowered, Any]:
        """(the program for `mesh`, its arguments: abstract, with the shardings that they have). The rules are those that `config.mesh` names.

        Raises ConfigError for what does not divide by the mesh, naming it.
        """
        function, arguments = _train_step(self, mesh) if self.kind == "train" else _answer(self, mesh)
        return function.lower(*arguments), arguments

    def flops(self) -> int:
        """FLOPs of one call, all rows and devices together (`training/flops.py`)."""
        return _train_flops(self) if self.kind == "train" else _answer_flops(self)


def chip_bytes(arguments: Any) -> int:
    """Bytes of abstract arguments on each device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments))


def with_mesh(program: Program, config: ExperimentConfig) -> Program:
    """The same program of a config that differs in its mesh, its remat, or a stage's batch and its parts."""
    stage = None if program.stage is None else next(stage for stage in config.train.stages if stage.name == program.stage.name)
    return dataclasses.replace(program, config=config, stage=stage, rows=stage.batch if stage else program.rows)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings)


# ---------------------------------------------------------------------------------------------------------------------------- training


def train_programs(config: ExperimentConfig, tokenizer: Tokenizer) -> Iterator[Program]:
    """The train steps of all stages, in their order. Raises ConfigError for a stage whose numbers contradict each other."""
    for stage in config.train.stages:
        shapes = batch_shapes(config, stage)
        for number in range(len(shapes)):
            name = f"train {stage.name}" if len(shapes) == 1 else f"train {stage.name}, rows of {stage.conversation.rows[number].length}"
            yield Program(name, "train", stage.batch, stage.batch * _row_positions(config, stage, number, tokenizer), config, tokenizer, stage, number)


def _row_positions(config: ExperimentConfig, stage: StageConfig, number: int, tokenizer: Tokenizer) -> int:
    """Slots of the decoder that one example fills, pads included."""
    sizes, signal = config.grounding, config.decoder.signal
    if stage.task == "pretrain":
        return 0
    if stage.task == "conversation":
        return stage.conversation.rows[number].length
    dense = next((level for level in sizes.levels if level.kind == "dense"), None)
    level = sizes.level(stage.level) if stage.level else dense
    before = len(constants(config, tokenizer, level.name, stage)["before_ids"])
    if stage.task == "language":  # a caption of a picture's tokens, and pointing at slots of the dense level
        picture = config.vision.grids[0][0] * config.vision.grids[0][1] // config.vision.merge**2
        cues = level.tokens if signal.enabled and signal.cues else 0
        return (before + picture + 1 + sizes.query_len) + (before + level.tokens + cues + sizes.prompt_len + sizes.answer_len)
    if stage.task == "presence":
        visual = slots = 1
    elif level.kind == "patch":
        visual, slots = level.budget, 0 if config.patch_vision is not None else level.tokens
    elif level.kind == "dense":
        visual = slots = stage.examples.frames or level.tokens
    else:
        run = sizes.below(level.name).run_length(level) if level.kind == "nested" else 1
        visual = slots = (stage.windows or level.tokens * run) // run
    cues = slots if signal.enabled and signal.cues else 0
    return before + visual + cues + sizes.prompt_len + sizes.answer_len


def _train_parts(program: Program) -> tuple[Any, Any, dict[str, jax.ShapeDtypeStruct]]:
    """(trainable, frozen, batch) of a stage, abstract."""
    config, stage = program.config, program.stage
    state = jax.eval_shape(lambda state: begin_stage(state, stage, config.train.base_dtype), jax.eval_shape(lambda: first_state(config, jax.random.key(0))))
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in batch_shapes(config, stage)[program.shapes].items()}
    return *split(state, stage.train), batch


def _train_step(program: Program, mesh: Mesh) -> tuple[Callable, tuple]:
    config, stage = program.config, program.stage
    rules = rules_named(config.mesh.rules)
    check_batch(f"stages.{stage.name}.batch", stage.batch, mesh, rules, stage.accumulate)
    trainable, frozen, batch = _train_parts(program)
    shardings = tree_shardings(trainable, mesh, rules), tree_shardings(frozen, mesh, rules)
    optimizer = make_optimizer(stage)
    opt_shardings = optimizer_shardings(optimizer, trainable, shardings[0], mesh)
    step = make_train_step(config, stage, loss_of(config, stage, program.tokenizer), optimizer, mesh, rules, *shardings, opt_shardings)
    rows, whole = batch_sharding(mesh, rules), NamedSharding(mesh, P())
    return step, (
        _placed(trainable, shardings[0]), _placed(frozen, shardings[1]), _placed(jax.eval_shape(optimizer.init, trainable), opt_shardings),
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in batch.items()}, jax.ShapeDtypeStruct((), np.int32, sharding=whole),
    )  # fmt: skip


def _train_flops(program: Program) -> int:
    return model_flops(program.config, lambda config: loss_of(config, program.stage, program.tokenizer), *_train_parts(program))


# --------------------------------------------------------------------------------------------------------------------------- answering


def answer_programs(config: ExperimentConfig, tokenizer: Tokenizer) -> Iterator[Program]:
    """The programs that answering with a config compiles, of each the one with the most rows and the longest questions; none for a model without a text tower.

    Raises ConfigError where prompts and sizes do not fit.
    """
    if config.text is None:
        return
    functions = LevelFunctions(config, tokenizer)
    for shape in program_shapes(functions, _answer_state(config), largest=True):
        arrays = jax.tree.leaves(shape.arrays)
        level = config.grounding.level(shape.level) if shape.level else None
        rows = arrays[0].shape[0] if level is None or "tokens" in shape.kind else level.batch
        yield Program(f"{shape.kind} {shape.level}".strip(), "answer", rows, 0, config, tokenizer, shape=shape)


def _answer_state(config: ExperimentConfig) -> Any:
    """The state as `Grounder` loads it."""
    dtype = jnp.bfloat16 if config.decoder.dtype == "bfloat16" else jnp.float32
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), abstract_state(config))


def _answer_function(program: Program) -> Callable:
    functions, shape = LevelFunctions(program.config, program.tokenizer), program.shape
    function = functions.by_kind[shape.kind]
    return functools.partial(function, program.config.grounding.level(shape.level)) if shape.level else function


def _answer(program: Program, mesh: Mesh) -> tuple[Callable, tuple]:
    """The first axis of an array is split as a batch is where it divides by the mesh, and the array is whole on every device where it does not."""
    rules, function = rules_named(program.config.mesh.rules), _answer_function(program)
    state = level_state(_answer_state(program.config), program.shape.level)
    rows, whole = batch_sharding(mesh, rules), NamedSharding(mesh, P())
    devices = mesh_size(mesh, rules.batch)
    lies = lambda x: rows if x.ndim and x.shape[0] % devices == 0 else whole
    arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies(x)), program.shape.arrays)

    def run(state: Any, *arrays: Any) -> Any:
        with on_mesh(mesh):
            return function(state, *arrays)

    return jax.jit(run), (_placed(state, tree_shardings(state, mesh, rules)), *arrays)


def _answer_flops(program: Program) -> int:
    answers = "answer" in program.shape.kind
    rounds = LevelFunctions(program.config, program.tokenizer).grammar(program.config.grounding.level(program.shape.level)).rounds if answers else 2
    turns = rounds - 1  # what is chosen last is not read
    return product_flops(_answer_function(program), level_state(_answer_state(program.config), program.shape.level), *program.shape.arrays, loops=turns)


def all_programs(config: ExperimentConfig, tokenizer: Tokenizer, stage: str | None = None) -> list[Program]:
    """Train steps, then the programs of answering; of one stage its train steps alone. Raises ConfigError for a stage that does not exist."""
    known = [item.name for item in config.train.stages]
    if stage is not None and stage not in known:
        raise ConfigError(f"--stage {stage}: no such stage; there are {', '.join(known) or 'none'}")
    train = [program for program in train_programs(config, tokenizer) if stage in (None, program.stage.name)]
    return train if stage is not None else [*train, *answer_programs(config, tokenizer)]
