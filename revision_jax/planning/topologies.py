"""Hardware by name, present or not: "v5e:8x8" and every other shape that the TPU compiler knows, "2*v5e:16x16" for several slices, "cpu:8", "gpu:4".

TPUs are described by libtpu, which compiles for a slice on any machine (`pip install "jax[tpu]"`, no TPU needed). `prepare` must have set the environment
before jax is imported. CPU devices are those of this machine, as many as asked for.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from revision_jax.errors import UserError
from revision_jax.sharding.chips import CHIPS, Chip, chip_of

TPU_SHAPES = {"v4": "v4:2x2x2", "v5e": "v5e:8x8", "v5p": "v5p:4x4x8", "v6e": "v6e:8x8"}  # an example of each
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # or libtpu asks the cloud which machine this is
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any; or libtpu complains that it cannot find out
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another process may be planning
    "JAX_PLATFORMS": "cpu",  # or jax looks for a TPU to run on
}


@dataclass(frozen=True, eq=False)
class Topology:
    """Devices of a slice, or of several. chip: None where nothing is known of what they can do at best."""

    name: str
    devices: tuple[Any, ...]  # jax devices; of a slice that is not here they can be compiled for, not run on
    chip: Chip | None

    @functools.cached_property
    def coordinates(self) -> tuple[tuple[int, ...], ...] | None:
        """Where each device lies in the torus; None where there is none."""
        found = [getattr(device, "coords", None) for device in self.devices]
        return None if any(place is None for place in found) else tuple(tuple(place) for place in found)

    def axes(self, places: Sequence[int]) -> int:
        """Along how many axes of the torus a group of devices (numbers) extends; 1 where there is none."""
        if self.coordinates is None:
            return 1
        return sum(len(set(along)) > 1 for along in zip(*(self.coordinates[place] for place in places), strict=True))


def check(name: str) -> tuple[int, str, str]:
    """(slices, kind, shape of each) of a topology's name. Raises UserError for what is none."""
    slices, _, one = name.rpartition("*")
    kind, _, shape = one.partition(":")
    axes = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}.get(kind, 1)
    wanted = "x".join([r"[1-9]\d*"] * axes)
    several = re.fullmatch(r"[2-9]|[1-9]\d+", slices) and kind in TPU_SHAPES
    if kind not in (*TPU_SHAPES, "cpu", "gpu") or not re.fullmatch(wanted, shape) or not (several or one == name):
        raise UserError(f"--topology {name}: no such topology; they are named as {', '.join(TPU_SHAPES.values())}, 2*v5e:16x16, cpu:8 or gpu:4")
    return int(slices or 1), kind, shape


def prepare(name: str) -> None:
    """Sets what must be set before jax is imported, for this process alone. Raises UserError for a name that is none."""
    _, kind, shape = check(name)
    if kind == "cpu":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={shape}"
    if kind != "gpu":
        os.environ.update(ENVIRONMENT)


def load(name: str) -> Topology:
    """The devices of a topology. Raises UserError, in one line, for what this machine cannot describe."""
    slices, kind, shape = check(name)
    if kind == "cpu":
        return Topology(name, _host(int(shape)), None)
    if kind == "gpu":
        return _gpu(name, int(shape))
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f'--topology {name}: needs the TPU compiler, without any TPU: pip install "jax[tpu]"')
    try:
        options = {"chip_config_name": "megacore"} if kind in ("v4", "v5p") else {}  # both cores of a chip as one device
        devices = _described(f"{kind}:{shape}", options | ({"num_slices": slices} if slices > 1 else {}))
    except Exception as error:  # the plugin raises RuntimeError, ValueError and its own
        raise UserError(f"--topology {name}: the TPU compiler knows no such slice ({_line(error)}); a valid one is {TPU_SHAPES[kind]}") from None
    return Topology(name, devices, CHIPS[kind])


def _described(name: str, options: dict[str, str | int]) -> tuple[Any, ...]:
    from jax.experimental import topologies

    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)


def _host(count: int) -> tuple[Any, ...]:
    import jax

    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology cpu:{count}: this process has {len(devices)} CPU devices; set XLA_FLAGS=--xla_force_host_platform_device_count={count}")
    return tuple(devices[:count])


def _gpu(name: str, count: int) -> Topology:
    """GPUs that are here: jax describes others only by a file of their properties."""
    import jax

    try:
        devices = jax.devices("gpu")
    except RuntimeError:
        devices = []
    if len(devices) < count:
        raise UserError(f"--topology {name}: jax sees {len(devices)} GPUs here, and compiles for GPUs only where they are; plan for a TPU slice or cpu:{count}")
    return Topology(name, tuple(devices[:count]), chip_of(devices[0].device_kind))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
