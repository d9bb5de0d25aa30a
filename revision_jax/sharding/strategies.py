"""Sharding strategies by name: the rules, and how many devices each mesh axis gets.

    name                  mesh on 64 devices                 weights                                 what it costs
    dp                    data 64                            whole on every device                   an all-reduce of the trained weights' gradients
    fsdp                  fsdp 64                            split 64 ways, gathered layer by layer  every weight moves twice or thrice a step (ZeRO-3)
    tensor                data 16, tensor 4                  split 4 ways, never gathered            activations are summed twice a layer (Megatron)
    fsdp_tensor           fsdp 16, tensor 4                  split 64 ways, gathered 16 ways         both, each of smaller pieces
    fsdp_context          fsdp 16, context 4                 split 64 ways, gathered 64 ways         as fsdp; all-to-alls around attention (or a ring)
    fsdp_context_tensor   fsdp 8, context 2, tensor 4        split 64 ways, gathered 16 ways         all of them

`mesh.rules` of a config names the rules that a run shards by, the mesh's sizes are its own fields; `Strategy.mesh` gives both for a number of devices,
as `launch.plan` does. A config file adds one of its own in a few lines:

    add_strategy("wide", Rules(embed=("data", "fsdp")), lambda devices: {"data": devices // 8, "fsdp": 8})

Sources: ZeRO (arXiv 1910.02054), Megatron-LM (arXiv 1909.08053), GSPMD (arXiv 2105.04663).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from revision_jax.config import ConfigError, MeshConfig
from revision_jax.sharding.mesh import AXES
from revision_jax.sharding.rules import WEIGHTS, Rules

Sizes = Callable[[int], Mapping[str, int]]  # devices -> sizes of mesh axes; an axis that is left out has one


@dataclass(frozen=True)
class Strategy:
    """Rules and the mesh that they are meant for."""

    name: str
    rules: Rules
    sizes: Sizes

    def mesh(self, devices: int) -> MeshConfig:
        """The mesh for a number of devices. Raises ConfigError for unknown mesh axes and for sizes that do not multiply to it."""
        sizes = dict.fromkeys(AXES, 1) | dict(self.sizes(devices))
        unknown = sorted(set(sizes) - set(AXES))
        if unknown:
            raise ConfigError(f"strategy {self.name}: unknown mesh axis {', '.join(unknown)}; known are {', '.join(AXES)}")
        if math.prod(sizes.values()) != devices:
            told = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
            raise ConfigError(f"strategy {self.name}: {told} needs {math.prod(sizes.values())} devices, there are {devices}")
        return MeshConfig(**sizes, rules=self.name)


def inner(devices: int, most: int) -> int:
    """Devices of an inner axis: the largest power of two up to `most` that divides `devices` and leaves the outer axes at least as many."""
    size = 1
    while 2 * size <= most and devices % (2 * size) == 0 and 4 * size * size <= devices:
        size *= 2
    return size


def _data(devices: int) -> Mapping[str, int]:
    return {"data": devices}


def _fsdp(devices: int) -> Mapping[str, int]:
    return {"fsdp": devices}


def _tensor(devices: int) -> Mapping[str, int]:
    return {"data": devices // inner(devices, 4), "tensor": inner(devices, 4)}


def _fsdp_tensor(devices: int) -> Mapping[str, int]:
    return {"fsdp": devices // inner(devices, 4), "tensor": inner(devices, 4)}


def _fsdp_context(devices: int) -> Mapping[str, int]:
    return {"fsdp": devices // inner(devices, 4), "context": inner(devices, 4)}


def _fsdp_context_tensor(devices: int) -> Mapping[str, int]:
    context = inner(devices, 2)
    return {"context": context, **_fsdp_tensor(devices // context)}


SPREAD = Rules(embed=("fsdp", "context"))  # weights are split over the devices of a sequence too

PRESETS: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("dp", Rules(**dict.fromkeys(WEIGHTS)), _data),
        Strategy("fsdp", Rules(), _fsdp),
        Strategy("tensor", Rules(embed=None), _tensor),
        Strategy("fsdp_tensor", Rules(), _fsdp_tensor),
        Strategy("fsdp_context", SPREAD, _fsdp_context),
        Strategy("fsdp_context_tensor", SPREAD, _fsdp_context_tensor),
    )
}
# Rules that a config can name beside the presets: for a mesh whose sizes are given by hand.
PLAIN: dict[str, Rules] = {"default": Rules(), "fit": Rules(indivisible="replicate")}
_added: dict[str, Strategy] = {}


def strategies() -> dict[str, Strategy]:
    """All strategies: the presets, and those that config files added."""
    return {**PRESETS, **_added}


def add_strategy(name: str, rules: Rules, sizes: Sizes) -> Strategy:
    """Makes a strategy known under a new name. Raises ConfigError for a name that means other rules already: a name never changes what it means."""
    if name in PLAIN or (name in strategies() and strategies()[name].rules != rules):
        raise ConfigError(f"strategy {name}: is known already, with other rules; choose another name")
    _added[name] = Strategy(name, rules, sizes)
    return _added[name]


def strategy_named(name: str) -> Strategy:
    """A strategy by its name; raises ConfigError for an unknown one."""
    if name not in strategies():
        raise ConfigError(f"strategy: {name!r} is not one of {', '.join(strategies())}")
    return strategies()[name]


def rules_named(name: str) -> Rules:
    """The rules that `mesh.rules` names: a strategy's, "default", or "fit". Raises ConfigError for an unknown name."""
    known = {**PLAIN, **{strategy.name: strategy.rules for strategy in strategies().values()}}
    if name not in known:
        raise ConfigError(f"mesh.rules: {name!r} is not one of {', '.join(known)}")
    return known[name]
