"""Logical axes and what they mean on the mesh.

Every weight and every activation names its axes once ("embed", "heads", "batch", ...). A frozen `Rules` object says which mesh axis, tuple
of mesh axes or nothing each name is split over; `spec("batch", "position", None)` turns names into a PartitionSpec. A name that no rule
knows raises, and so does a spec that would use one mesh axis twice: nothing is silently left whole.

A dimension of a weight that does not divide by its mesh axes raises too, naming the weight, unless the rules say `indivisible="replicate"`: then that one
dimension is left whole. `sharding/strategies.py` has the rules that a config can name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from revision_jax import paths
from revision_jax.config import ConfigError
from revision_jax.sharding.mesh import AXES
from revision_jax.sharding.parameters import axes_of

Axis = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Rules:
    """One field per logical axis: the mesh axis or axes it is split over, or None. Hashable, so it can be a static argument."""

    # activations
    batch: Axis = ("data", "fsdp")  # examples, windows of a call, questions
    frame: Axis = ("data", "fsdp", "context")  # frames in the encoder and windows in an adapter, which are its batch: no collective at all
    position: Axis = "context"  # positions of the decoder's sequence
    hidden: Axis = None  # width of an activation
    act_heads: Axis = "tensor"
    act_mlp: Axis = "tensor"
    act_vocab: Axis = "tensor"
    # weights
    layers: Axis = None  # the stacked layer axis of a scanned module
    embed: Axis = "fsdp"  # a layer's model width
    heads: Axis = "tensor"  # query heads times head width
    kv_heads: Axis = "tensor"
    mlp: Axis = "tensor"
    vocab: Axis = "tensor"
    rank: Axis = None  # of LoRA
    norm: Axis = None  # scales and biases of norms, and other vectors of the model's width
    patch: Axis = None  # pixels of one patch, positions of a learned table, and other small axes
    # what happens to a dimension that does not divide
    indivisible: Literal["raise", "replicate"] = "raise"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            entry = getattr(self, field.name)
            unknown = [] if field.name == "indivisible" else [axis for axis in ((entry,) if isinstance(entry, str) else entry or ()) if axis not in AXES]
            if unknown:
                raise ConfigError(f"sharding: the rule for {field.name!r} names the mesh axis {unknown[0]!r}; known are {', '.join(AXES)}")

    def axis(self, name: str | None) -> Axis:
        """The mesh axes of one logical axis (None stays None). Raises ConfigError for a name without a rule."""
        if name is None:
            return None
        if name not in LOGICAL:
            raise ConfigError(f"sharding: no rule for the logical axis {name!r}; known are {', '.join(LOGICAL)}")
        return getattr(self, name)

    def spec(self, *names: str | None, where: str = "an activation") -> P:
        """Logical names -> PartitionSpec, one entry a dimension. `spec("layers", "embed", "mlp")` is P(None, "fsdp", "tensor") by default.

        where: the array's name, for messages. Raises ConfigError for an unknown name and where two dimensions would be split over the same mesh axis.
        """
        entries = [self.axis(name) for name in names]
        used: dict[str, str | None] = {}
        for name, entry in zip(names, entries, strict=True):
            for mesh_axis in (entry,) if isinstance(entry, str) else entry or ():
                if mesh_axis in used:
                    told = ", ".join(map(str, names))
                    raise ConfigError(f"sharding: {where}: {used[mesh_axis]!r} and {name!r} of ({told}) are both split over the mesh axis {mesh_axis!r}")
                used[mesh_axis] = name
        return P(*entries)


LOGICAL = tuple(field.name for field in dataclasses.fields(Rules) if field.name != "indivisible")
WEIGHTS = ("layers", "embed", "heads", "kv_heads", "mlp", "vocab", "rank", "norm", "patch")


def mesh_size(mesh: Mesh, axis: Axis) -> int:
    """Devices along one or several mesh axes."""
    return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis or ()))


def fitted(where: str, shape: tuple[int, ...], names: tuple[str | None, ...], mesh: Mesh, rules: Rules) -> P:
    """The spec of one array, every dimension checked against the mesh. Raises ConfigError naming `where`, the dimension and the mesh axes."""
    if len(names) != len(shape):
        raise ConfigError(f"sharding: {where} has shape {shape} but the axes ({', '.join(map(str, names))})")
    entries: list[Axis] = []
    for size, name, entry in zip(shape, names, rules.spec(*names, where=where), strict=True):
        devices = mesh_size(mesh, entry)
        if size % devices:
            if rules.indivisible == "raise":
                raise ConfigError(f"sharding: {where}: axis {name!r} of {size} does not divide by the {devices} devices of mesh axis {entry}; "
                                  'use a size that divides it, or mesh.rules="fit"')
            entry = None
        entries.append(entry)
    return P(*entries)


def tree_shardings(tree: Mapping[str, Any], mesh: Mesh, rules: Rules, axes: Any = axes_of) -> dict[str, Any]:
    """NamedSharding for every leaf of a state tree (arrays or ShapeDtypeStructs), same nesting.

    axes: `(name, shape) -> logical axes`, by default the table of `sharding/parameters.py`.
    """

    def shard(name: str, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, fitted(name, tuple(leaf.shape), axes(name, tuple(leaf.shape)), mesh, rules))

    def walk(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        out = {}
        for key, value in node.items():
            name = f"{prefix}/{key}" if prefix else key
            out[key] = walk(value, name) if isinstance(value, Mapping) else shard(name, value)
        return out

    return walk(tree, "")


def batch_sharding(mesh: Mesh, rules: Rules) -> NamedSharding:
    """Sharding of a batch's arrays: the leading axis over the batch's mesh axes, the rest whole."""
    return NamedSharding(mesh, rules.spec("batch"))


def check_batch(where: str, batch: int, mesh: Mesh, rules: Rules, parts: int = 1) -> None:
    """Raises ConfigError naming the field `where` if a batch, or each of the parts that it is taken in, does not divide by the mesh axes it is split over."""
    devices = mesh_size(mesh, rules.batch)
    if batch % (devices * parts):
        told = f" in {parts} parts" if parts > 1 else ""
        multiple = f"use a multiple of {devices * parts}"
        raise ConfigError(f"{where}: a batch of {batch}{told} does not divide by the {devices} devices of the mesh axes {rules.batch}; {multiple}")


def replicated_bytes(tree: Mapping[str, Any], shardings: Mapping[str, Any]) -> float:
    """Share (0 to 1) of a tree's bytes that lie whole on every device: what a sharding strategy leaves unsplit."""
    whole = total = 0
    split = paths.flatten(shardings)
    for name, leaf in paths.flatten(tree).items():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size
        whole += size if split[name].is_fully_replicated else 0
    return whole / total if total else 0.0
