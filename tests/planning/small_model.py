"""A model whose every collective can be written down: two layers of x + relu(x a) b, scanned, and the train step of `training/step.py` around it.

`python -m tests.planning.small_model` compiles it for 8 CPU devices under dp, fsdp and tensor and prints what the planner reads off, as JSON; the tests start
it in a process of its own. `.. tpu v5e:2x4` does so for a TPU slice, or for several. `.. live [NAME ...]` takes a step of tests/tiny.py's model instead, under
these strategies (fsdp), and prints the bytes that its arrays take on a device beside those that the planner tells.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

LAYERS, WIDTH, INNER, ROWS = 2, 64, 256, 2048


def step_for(strategy: str, devices: list):
    """(the jitted train step, its abstract arguments, the mesh)."""
    import jax
    import jax.numpy as jnp

    from revision_jax.config import ExperimentConfig, StageConfig, TrainConfig
    from revision_jax.sharding.mesh import make_mesh
    from revision_jax.sharding.rules import tree_shardings
    from revision_jax.sharding.strategies import strategy_named
    from revision_jax.training.optimizer import make_optimizer
    from revision_jax.training.step import make_train_step, optimizer_shardings

    stage = StageConfig(name="small", task="pretrain", train=("params",), steps=10, batch=ROWS, clip=0.0)
    chosen = strategy_named(strategy)
    mesh = make_mesh(chosen.mesh(len(devices)), devices)
    axes = lambda name, shape: {"params/a": ("layers", "embed", "mlp"), "params/b": ("layers", "mlp", "embed")}[name]

    def loss(state, batch, key):
        def layer(x, weights):
            return x + jax.nn.relu(x @ weights["a"]) @ weights["b"], None

        return jnp.mean(jnp.square(jax.lax.scan(layer, batch["x"], state["params"])[0])), {}

    trainable = {"params": {"a": _floats(LAYERS, WIDTH, INNER), "b": _floats(LAYERS, INNER, WIDTH)}}
    shardings, optimizer = tree_shardings(trainable, mesh, chosen.rules, axes), make_optimizer(stage, axes)
    opt_shardings = optimizer_shardings(optimizer, trainable, shardings, mesh)
    config = ExperimentConfig(train=TrainConfig(stages=(stage,)))
    step = make_train_step(config, stage, loss, optimizer, mesh, chosen.rules, shardings, {}, opt_shardings)
    arguments = trainable, {}, jax.eval_shape(optimizer.init, trainable), {"x": _floats(ROWS, WIDTH)}, jax.ShapeDtypeStruct((), "int32")
    return step, arguments, mesh


def _floats(*shape: int):
    import jax

    return jax.ShapeDtypeStruct(shape, "float32")


def compiled_bytes(topology: str = "cpu:8") -> dict:
    """{strategy: {"collectives": {kind: {"count", "bytes", ...}}, "flops" of a chip}}."""
    from revision_jax.planning import hlo, work
    from revision_jax.planning.collectives import by_kind, collectives
    from revision_jax.planning.topologies import load

    told, devices = {}, list(load(topology).devices)
    for strategy in ("dp", "fsdp", "tensor"):
        step, arguments, _ = step_for(strategy, devices)
        module = hlo.parse(step.lower(*arguments).compile().as_text())
        told[strategy] = {"collectives": by_kind(collectives(module, len(devices))), "flops": work.flops(module)}
    return told


def live_bytes(names: list[str]) -> dict:
    """{strategy: [bytes that the planner tells, bytes of the arrays on each device after a real step]}."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from revision_jax.planning.programs import all_programs, chip_bytes, with_mesh
    from revision_jax.planning.vocabulary import stand_in
    from revision_jax.sharding.mesh import make_mesh
    from revision_jax.sharding.strategies import strategy_named
    from tests.planning.stages import config

    told = {}
    for name in names or ["fsdp"]:
        mesh = strategy_named(name).mesh(8)
        program = next(program for program in all_programs(config(), stand_in(config()), "1a"))
        program = with_mesh(program, dataclasses.replace(program.config, mesh=mesh))
        lowered, arguments = program.lowered(make_mesh(mesh))
        before = {id(array) for array in jax.live_arrays()}
        zeros = jax.tree.map(lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding), arguments)
        trainable, opt_state, metrics = lowered.compile()(*zeros)
        del metrics, zeros
        frozen, batch, number = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), (arguments[1], *arguments[3:]))
        held = dict.fromkeys(jax.devices(), 0)
        for array in jax.live_arrays():
            if id(array) not in before:
                for shard in array.addressable_shards:
                    held[shard.device] += shard.data.nbytes
        told[name] = [chip_bytes(arguments), *held.values()]
        del trainable, opt_state, frozen, batch, number
    return told


if __name__ == "__main__":
    from revision_jax.planning.topologies import prepare

    what, names = (sys.argv[1:] or [""])[0], sys.argv[2:]
    os.environ["XLA_FLAGS"] = ""
    prepare(names[0] if what == "tpu" else "cpu:8")
    print(json.dumps(live_bytes(names) if what == "live" else compiled_bytes(*names)))
