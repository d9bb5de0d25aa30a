"""Loads a model onto a mesh and tells what was read of its files: `python -m tests.convert.placing FOREIGN OURS [I N PORT]`, process I of N."""

from __future__ import annotations

import json
import sys

import numpy as np


class Counted(np.ndarray):
    """A mapped tensor that counts the bytes taken out of it, through all the views that a transform makes of it."""

    taken = 0

    def __getitem__(self, index):
        part = super().__getitem__(index)
        Counted.taken += part.nbytes
        return part.view(np.ndarray)  # what is cut out of it again has been counted


def count_what_is_read() -> None:
    from revision_jax.convert.source import Source

    read = Source.read
    Source.read = lambda self, name: read(self, name).view(Counted)


def main(foreign: str, ours: str, index: int = 0, count: int = 1, port: int = 0) -> None:
    import jax

    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", count, index)
    from revision_jax import checkpoint, paths
    from revision_jax.config import MeshConfig
    from revision_jax.convert.assemble import Part, assemble
    from revision_jax.convert.load import load_state
    from revision_jax.models.revision import abstract_state
    from revision_jax.sharding.mesh import make_mesh
    from revision_jax.sharding.rules import tree_shardings
    from revision_jax.sharding.strategies import rules_named

    made = assemble([Part(foreign)])
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    shardings = tree_shardings(abstract_state(made.config), mesh, rules_named("default"))
    count_what_is_read()
    told = {"devices": jax.device_count(), "taken": [], "wanted": [], "equal": []}
    for load in (lambda: load_state(made.plans, shardings=shardings), lambda: checkpoint.load(ours, shardings=shardings).state):
        Counted.taken = 0
        leaves = paths.flatten(load())
        told["taken"].append(Counted.taken)
        where = paths.flatten(shardings)
        # Each part that this process's devices hold, once.
        told["wanted"].append(sum({str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards}[key]
                                  for leaf in leaves.values() for key in {str(shard.index) for shard in leaf.addressable_shards}))  # fmt: skip
        whole = paths.flatten(checkpoint.load(ours).state)
        told["equal"].append(set(whole) == set(leaves) == set(where) and all(
            leaf.sharding == where[name] and all(np.array_equal(shard.data, whole[name][shard.index]) for shard in leaf.addressable_shards)
            for name, leaf in leaves.items()))  # fmt: skip
        told["all"] = sum(array.nbytes for array in whole.values())
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
