"""Where rows of metrics go beside `metrics.jsonl`: TensorBoard and Weights & Biases, each by flag and only where it is installed. Process 0 alone writes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax

from revision_jax.errors import UserError

Tracker = Callable[[int, Mapping[str, Any]], None]  # (step over all stages, row)


def tensorboard(folder: str | os.PathLike) -> Tracker:
    """Scalars "<stage>/<metric>" under `folder`, by tensorboardX. Raises UserError where that is not installed."""
    module = _installed("tensorboardX", "--tensorboard")
    if jax.process_index() != 0:
        return lambda step, row: None
    writer = module.SummaryWriter(str(folder))

    def add(step: int, row: Mapping[str, Any]) -> None:
        for name, value in scalars(row).items():
            writer.add_scalar(f"{row['stage']}/{name}", value, step)
        writer.flush()

    return add


def wandb(project: str, workdir: str | os.PathLike, config: Mapping[str, Any]) -> Tracker:
    """A run of Weights & Biases with the work directory's name, gone on with after a restart. Raises UserError where it is not installed."""
    module = _installed("wandb", "--wandb")
    if jax.process_index() != 0:
        return lambda step, row: None
    name = os.path.basename(os.path.abspath(workdir))
    run = module.init(project=project, id=name, name=name, dir=str(workdir), config=dict(config), resume="allow")
    return lambda step, row: run.log({f"{row['stage']}/{name}": value for name, value in scalars(row).items()}, step=step)


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a row is measured: not the stage and its steps."""
    return {name: value for name, value in row.items() if name not in ("stage", "step", "steps")}


def _installed(package: str, flag: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{flag}: needs the package {package}, which is not installed: pip install {package}") from error
