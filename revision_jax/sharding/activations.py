"""Where activations lie on the mesh: the few places where a model says so, and the context in which that counts.

Weights that are split over the axis that they are summed over leave the compiler a choice, and it may split the hidden states by width rather than by row.
One constraint where the layers hand them on settles it: without it the 7B's stage 1a needs 38 GiB of a chip of v5e:8x8 under fsdp, with it 6.
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from revision_jax.sharding.strategies import rules_named


def constrain(x: jax.Array, rules: str, *names: str | None) -> jax.Array:
    """Pins where an activation lies: `names` are its logical axes, `rules` the name of the rules (`mesh.rules`). Without a mesh (`on_mesh`) x as it is.

    A dimension that does not divide is padded by the compiler.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, rules_named(rules).spec(*names))


def on_mesh(mesh: Mesh) -> jax.sharding.use_abstract_mesh:
    """Context in which `constrain` acts, for a function that is being traced. The mesh is part of what jax caches a trace by."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def platform() -> str:
    """What is traced for: "tpu", "gpu" or "cpu". The mesh's devices say so where there is one (they need not be here), the default backend elsewhere."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
