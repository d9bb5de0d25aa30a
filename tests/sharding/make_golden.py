"""Remakes `golden/*.json`: where every preset's weights lie under every strategy. `python -m tests.sharding.make_golden`

One line a weight: its shape and, strategy by strategy, the mesh axes of each dimension ("." = whole, "+" = over both). Layers of a tower that lie alike are one
line, `blocks_*`. On 64 devices, 8 for the tiny model; where a weight does not divide by them the line says so.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"
PRESETS = (
    "tiny", "videollama3_2b", "videollama3_7b", "revisionllm_7b_mad", "revisionllm_7b_vidchapters", "revisionllm_7b_hour", "revisionllm_7b_msrvtt",
    "revision_2b", "revision_7b",
)  # fmt: skip


def golden(preset: str) -> str:
    """The file of a preset."""
    import importlib

    import jax
    import numpy as np
    from jax.sharding import Mesh

    from revision_jax import paths
    from revision_jax.config import ConfigError
    from revision_jax.models.revision import abstract_state
    from revision_jax.sharding.mesh import AXES, mesh_shape
    from revision_jax.sharding.parameters import axes_of
    from revision_jax.sharding.rules import fitted
    from revision_jax.sharding.strategies import PRESETS as STRATEGIES

    devices = 8 if preset == "tiny" else 64
    leaves = paths.flatten(abstract_state(importlib.import_module(f"configs.{preset}").get_config()))
    meshes = {name: Mesh(np.full(mesh_shape(chosen.mesh(devices), devices), jax.devices()[0]), AXES) for name, chosen in STRATEGIES.items()}

    def line(name: str, leaf) -> str:
        told = {"shape": "x".join(map(str, leaf.shape)), "dtype": str(leaf.dtype)}
        for strategy, chosen in STRATEGIES.items():
            try:
                spec = fitted(name, tuple(leaf.shape), axes_of(name, tuple(leaf.shape)), meshes[strategy], chosen.rules)
                told[strategy] = " ".join("." if axis is None else axis if isinstance(axis, str) else "+".join(axis) for axis in spec)
            except ConfigError as error:
                told[strategy] = str(error).partition(f"{name}: ")[2].partition(";")[0]
        return json.dumps(told)

    lines: dict[str, str] = {}
    for name, leaf in leaves.items():
        alike = re.sub(r"blocks_\d+", "blocks_*", name)
        lines[name if lines.setdefault(alike, line(name, leaf)) != line(name, leaf) else alike] = line(name, leaf)
    return "{\n" + ",\n".join(f'"{name}": {told}' for name, told in lines.items()) + "\n}\n"


if __name__ == "__main__":
    for preset in PRESETS:
        (FOLDER / f"{preset}.json").write_text(golden(preset), encoding="utf-8")
        print(FOLDER / f"{preset}.json")
