"""Names of the leaves of a state tree: `{"params": {"text": {"w": x}}}` <-> `{"params/text/w": x}`.

A name is the dict keys joined by "/". The top-level keys `lora/<level>` and `adapter/<level>` hold a slash themselves; `unflatten` puts
them back together, so both directions agree for every state of the project. Needs no jax: checkpoints and conversions use it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

PER_LEVEL = ("lora", "adapter")  # collections that exist once per level, under the top-level key "<collection>/<level>"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by name, sorted. Empty dicts leave no trace."""
    leaves: dict[str, Any] = {}
    for key in sorted(tree):
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(tree[key], Mapping):
            leaves.update(flatten(tree[key], name))
        else:
            leaves[name] = tree[key]
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dicts that `flatten` came from: `lora/dense/a/b` -> `{"lora/dense": {"a": {"b": x}}}`."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        keys = name.split("/")
        if keys[0] in PER_LEVEL and len(keys) > 1:
            keys = ["/".join(keys[:2]), *keys[2:]]
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaf
    return tree


def slices(name: str, shape: tuple[int, ...], stacks: str) -> list[tuple[str, int | None]]:
    """What a leaf is read as, where those under `stacks` come apart: (name, row) of a leaf for each row of its leading axis; elsewhere itself, whole (None).

    "stacks/a/b" -> "stacks/0/a/b", "stacks/1/a/b", ..
    """
    if not (stacks and under(name, stacks)):
        return [(name, None)]
    return [(f"{stacks}/{row}{name.removeprefix(stacks)}", row) for row in range(shape[0])]


def under(name: str, prefix: str) -> bool:
    """Whether the leaf `name` lies at or below `prefix`; whole keys only, so "lora/dense" does not hold "lora/dense2/a"."""
    return name == prefix or name.startswith(prefix + "/")


def heads(names: Iterable[str]) -> list[str]:
    """The first two keys of every name, for error messages that list what there is."""
    return sorted({"/".join(name.split("/")[:2]) for name in names})
