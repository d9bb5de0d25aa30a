"""Joins the processes of one run, a process a host (or a GPU), and has them wait for each other.

    explicit        --coordinator HOST:PORT --processes N --process I
    SLURM           `srun` of several tasks: the step's own variables
    Cloud TPU, GKE  TPU_WORKER_HOSTNAMES of several hosts, or several slices: what the device plugin and JobSet set
    auto            --coordinator auto: whatever else jax finds out (a TPU VM's metadata server, Open MPI, Kubernetes)

Anything else is one process. Must run before jax touches a device. All processes see one work directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from revision_jax.errors import UserError

T = TypeVar("T")


def surroundings(environment: Mapping[str, str]) -> str | None:
    """Which of several processes this is told by: "slurm", "tpu" or None. A shell inside an allocation (sbatch, salloc) is not one of several."""
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1 and "SLURM_PROCID" in environment:
        return "slurm"
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    return "tpu" if len(hosts.split(",")) > 1 or slices > 1 else None


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the run that this process is part of; does nothing where it is alone. Raises UserError for half of an address, and where nobody answers."""
    import jax

    given = (coordinator, processes, process)
    auto = coordinator == "auto" and processes is None and process is None
    if not auto and None in given and given != (None, None, None):
        raise UserError("--coordinator HOST:PORT, --processes N and --process I go together; --coordinator auto and clusters that say so themselves need none")
    if not auto and coordinator is not None and (":" not in coordinator or not 0 <= process < processes):
        raise UserError(f"--coordinator {coordinator} --processes {processes} --process {process}: wants HOST:PORT and a process from 0 to {processes - 1}")
    found = surroundings(os.environ)
    try:
        if auto:
            jax.distributed.initialize()
        elif coordinator is not None:
            jax.distributed.initialize(coordinator, processes, process, cluster_detection_method="deactivate")
        elif found is not None:
            jax.distributed.initialize(cluster_detection_method="slurm" if found == "slurm" else None)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--coordinator {coordinator or found}: could not join the other processes ({' '.join(str(error).split())[:300]})") from error


def wait(what: str) -> None:
    """Until every process has come here; at once where there is one. what: the same everywhere."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def in_turn(make: Callable[[], T], what: str) -> T:
    """`make()` on process 0, and then on the others, who find what it has written."""
    import jax

    if jax.process_index() != 0:
        wait(what)
        return make()
    made = make()
    wait(what)
    return made


def everywhere(tree: Any) -> Any:
    """A tree of arrays that every process can compute with by itself: whole NumPy arrays where there are several; all must call this."""
    import jax

    return tree if jax.process_count() == 1 else jax.tree.map(_whole, tree)


def collected(tree: Any) -> Any:
    """A tree of arrays as whole NumPy arrays on process 0, leaf by leaf; None on the others, who must all call this."""
    import jax

    first = jax.process_index() == 0
    leaves, structure = jax.tree.flatten(tree)
    kept = []
    for leaf in leaves:
        array = _whole(leaf)
        if first:
            kept.append(array)
    return jax.tree.unflatten(structure, kept) if first else None


def _whole(leaf: Any) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(leaf if leaf.is_fully_addressable or leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True))
