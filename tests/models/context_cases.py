"""What `test_context.py` asks of eight CPU devices, in a process of its own: `python -m tests.models.context_cases` prints it as JSON.

Every case is attention of a whole sequence with garbage in its pads, on a mesh, against plain dense attention on one device: the largest difference of the
values and of each gradient, and how many collectives of each kind the compiled program has.
"""

from __future__ import annotations

import json
import os
import sys

BATCH, WIDTH = 4, 8
# name: (mesh sizes, heads, KV heads, what there is beside valid slots, length)
CASES = {
    "ulysses": ({"context": 4, "data": 2}, 8, 4, (), 32),
    "ulysses, KV heads repeated": ({"context": 4, "data": 2}, 8, 2, ("segments",), 32),
    "ulysses, heads over tensor too": ({"context": 2, "tensor": 2, "fsdp": 2}, 8, 4, ("signal",), 32),
    "ring": ({"context": 4, "data": 2}, 6, 3, ("signal",), 32),
    "ring of packed rows": ({"context": 8}, 6, 3, ("segments",), 32),
    "ring, heads over tensor too": ({"context": 2, "tensor": 2, "fsdp": 2}, 6, 2, ("signal",), 32),
    "ulysses, a length that does not divide": ({"context": 4, "data": 2}, 8, 4, ("signal",), 30),
    "ring, a length that does not divide": ({"context": 4, "data": 2}, 6, 3, ("signal",), 30),
}


def attention_cases() -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from revision_jax.config import MeshConfig
    from revision_jax.models.attention import attention
    from revision_jax.models.context import read_bias, sequence_attention
    from revision_jax.sharding.activations import on_mesh
    from revision_jax.sharding.mesh import make_mesh

    told = {}
    for name, (sizes, heads, groups, beside, length) in CASES.items():
        rng = np.random.default_rng(0)
        q, k, v = (jnp.asarray(rng.normal(size=(BATCH, length, count, WIDTH)), jnp.float32) for count in (heads, groups, groups))
        segments = np.ones((BATCH, length), np.int32)
        if "segments" in beside:
            segments[:, 9:] = 2
            segments[1:, 21:] = 3
        segments[0, 5:7] = segments[2, 26:] = segments[3, :3] = 0
        reads = columns = None
        if "signal" in beside:
            reads, columns = jnp.asarray(rng.random((BATCH, length)) < 0.4), jnp.asarray(rng.normal(size=(BATCH, heads, length)) * 2, jnp.float32)
        nothing = (segments == 0)[..., None, None]
        spoilt = [jnp.where(nothing, 1e3, x) for x in (q, k, v)]
        mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}))
        # Attention of one segment at a time, dense: the masks of the implementation are not what it is compared with.
        own = np.tril(np.ones((length, length), bool)) & (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
        weights = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

        def dense(q, k, v, columns, reads=reads, own=own, weights=weights):
            bias = None if columns is None else read_bias(reads, columns)
            out = attention(q, k, v, mask=jnp.asarray(own)[:, None], bias=bias)
            return jnp.sum(out * weights), out

        def split(q, k, v, columns, reads=reads, segments=segments, weights=weights, mesh=mesh):
            with on_mesh(mesh):
                out = sequence_attention(q, k, v, jnp.asarray(segments), causal=True, reads=reads, columns=columns)
            return jnp.sum(out * weights), out

        what = (0, 1, 2) if columns is None else (0, 1, 2, 3)
        (_, wanted), expected = jax.value_and_grad(dense, what, has_aux=True)(q, k, v, columns)
        compiled, arguments = lower(split, what, mesh, q, k, v, columns)
        (_, found), gradients = compiled(*arguments(*spoilt, columns))
        clean = lambda x, nothing=nothing: np.where(nothing, 0, x) if np.ndim(x) == 4 else np.asarray(x)
        told[name] = {
            "value": float(np.abs(np.asarray(found) - wanted).max()),
            "gradients": [float(np.abs(clean(a) - clean(b)).max()) for a, b in zip(gradients, expected, strict=True)],
            "finite": all(bool(np.isfinite(x).all()) for x in (found, *gradients)),
            "collectives": counted(compiled, mesh.size),
        }
    return told


def lower(function, what, mesh, q, k, v, columns):
    """(the compiled value and gradients of arrays that lie as on a mesh, a function that puts arrays there)."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    lies = NamedSharding(mesh, P(("data", "fsdp"), "context", "tensor")), NamedSharding(mesh, P(("data", "fsdp"), "tensor"))
    even = q.shape[1] % mesh.shape["context"] == 0
    place = lambda x: jax.device_put(x, lies[x.ndim == 3] if even else NamedSharding(mesh, P(("data", "fsdp"))))
    arguments = lambda *arrays: tuple(None if x is None else place(x) for x in arrays)
    return jax.jit(jax.value_and_grad(function, what, has_aux=True)).lower(*arguments(q, k, v, columns)).compile(), arguments


def counted(compiled, devices: int) -> dict:
    """How often the compiled program runs each kind of collective."""
    from revision_jax.planning import hlo
    from revision_jax.planning.collectives import by_kind, collectives

    found = collectives(hlo.parse(compiled.as_text()), devices)
    return {kind: row["count"] for kind, row in by_kind(found).items()}


def decoder_case() -> dict:
    """A scalar of a small decoder's hidden states and its gradients, LoRA and search signal on: relative differences between a mesh and one device."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    from revision_jax.models.decoder import Decoder
    from revision_jax.sharding.activations import on_mesh
    from revision_jax.sharding.mesh import make_mesh
    from revision_jax.sharding.rules import tree_shardings
    from revision_jax.sharding.strategies import strategy_named
    from tests.models.test_decoder import CONFIG, inputs, variables

    twice = {name: jnp.concatenate([x, x[::-1]]) for name, x in inputs().items()}
    odd = {name: x if name == "summary" else x[:, :11] for name, x in twice.items()}
    rows = jnp.asarray([[11, 6, 9], [7, 7, 10]] * 2, jnp.int32)

    def loss(tree, arrays, config=CONFIG, rules="default", rows=None):
        embeds, positions, own = (arrays[name] for name in ("embeds", "positions", "valid"))
        rest = {name: arrays[name] for name in ("reads", "signal", "summary")}
        hidden, _ = Decoder(config, rules).apply(tree, embeds, positions, own, **rest, rows=rows)
        return jnp.sum(jnp.where(own[..., None] if rows is None else True, jnp.sin(hidden), 0.0))

    told = {}
    for name, sizes in {"fsdp_context": None, "fsdp_context_tensor": None, "unrolled, rows": "fsdp_context"}.items():
        arrays = odd if name == "fsdp_context" else twice  # 11 slots are not two equal parts
        spoilt = {**arrays, "embeds": jnp.where(arrays["valid"][..., None], arrays["embeds"], jnp.nan)}
        strategy = strategy_named(sizes or name)
        mesh = make_mesh(strategy.mesh(8))
        more = {"config": dataclasses.replace(CONFIG, scan=False, remat=True), "rows": rows} if sizes else {"config": dataclasses.replace(CONFIG, remat=True)}
        wanted, expected = jax.jit(jax.value_and_grad(lambda tree, more=more, arrays=arrays: loss(tree, arrays, **more)))(variables())
        lie = tree_shardings({"params": {"decoder": variables()["params"]}, "lora/x": variables()["lora"]}, mesh, strategy.rules)

        def on_devices(tree, arrays, more=more, mesh=mesh, strategy=strategy):
            with on_mesh(mesh):
                return loss(tree, arrays, rules=strategy.name, **more)

        tree = jax.device_put(variables(), {"params": lie["params"]["decoder"], "lora": lie["lora/x"]})
        compiled = jax.jit(jax.value_and_grad(on_devices)).lower(tree, spoilt).compile()
        value, gradients = compiled(tree, spoilt)
        worst = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max() / max(1e-2, np.abs(b).max())), gradients, expected)
        told[name] = {
            "mesh": dict(mesh.shape), "value": abs(float(value - wanted)) / abs(float(wanted)), "gradients": max(jax.tree.leaves(worst)),
            "collectives": counted(compiled, mesh.size),
        }  # fmt: skip
    return told


if __name__ == "__main__":
    os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=8")
    print(json.dumps({"attention": attention_cases, "decoder": decoder_case}[sys.argv[1]]()))
