"""The device mesh: axes ("data", "fsdp", "context", "tensor"), Auto axis types, sizes from MeshConfig.

    data, fsdp  the batch is split over both; weights are split over fsdp and whole on every data replica
    context     positions of a long sequence, frames of a video
    tensor      heads, MLP width and vocabulary

Several TPU slices have no links between them but the data centre's network. Only `data`, and what it leaves over of `fsdp`, goes across it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from revision_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "context", "tensor")


def mesh_shape(config: MeshConfig, count: int) -> tuple[int, int, int, int]:
    """Sizes of the mesh axes for `count` devices; the axis that is -1 takes what is left. Raises ConfigError if they do not multiply to it."""
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    told = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if -1 in sizes:
        if count % known:
            raise ConfigError(f"mesh: {told} does not divide {count} devices; the fixed sizes must multiply to a divisor of {count}, not to {known}")
        sizes[sizes.index(-1)] = count // known
    elif known != count:
        raise ConfigError(f"mesh: {told} needs {known} devices, there are {count}; set one axis to -1 to take what is left")
    return tuple(sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all of them), laid out along the hardware's links. Raises ConfigError."""
    devices = jax.devices() if devices is None else list(devices)
    return Mesh(device_grid(mesh_shape(config, len(devices)), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(shape: tuple[int, int, int, int], devices: Sequence) -> np.ndarray:
    """The devices in a mesh's `shape`: neighbours along an axis are linked as well as can be, and slices lie behind each other on the outer part of `data`,
    then of `fsdp`. Raises ConfigError if the slices do not divide these two."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if len(devices) == 1:
        return np.asarray(devices).reshape(shape)
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    across, inside = across_slices(shape, slices)
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)


def across_slices(shape: tuple[int, int, int, int], slices: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """(how many slices each axis goes across, the mesh inside a slice); of data=4, fsdp=8 on 8 slices: data across 4, fsdp across 2 of 4 devices each.

    Gradients cross `data` once a step, weights cross `fsdp` at every layer, and what `context` and `tensor` send must not wait for a network at all.
    """
    data = math.gcd(shape[0], slices)
    fsdp = slices // data
    if shape[1] % fsdp:
        told = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
        raise ConfigError(f"mesh: {told} on {slices} slices; only data and fsdp go across slices: make data a multiple of {slices}")
    return (data, fsdp, 1, 1), (shape[0] // data, shape[1] // fsdp, *shape[2:])


def local_rows(sharding: jax.sharding.Sharding, batch: int) -> tuple[int, int]:
    """The rows [first, end) of a batch of `batch` that this process' devices hold. Raises ConfigError if they are not one run."""
    index = {slices[0].indices(batch)[:2] for slices in sharding.addressable_devices_indices_map((batch,)).values()}
    first, end = min(start for start, _ in index), max(stop for _, stop in index)
    if sum(stop - start for start, stop in index) != end - first:
        raise ConfigError(f"mesh: this process holds batch rows {sorted(index)}, not one run of rows; choose data and fsdp sizes that keep them together")
    return first, end
