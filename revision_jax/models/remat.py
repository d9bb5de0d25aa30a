"""Which activations of a layer are kept for the backward pass, by name; the others are computed again.

    none   all of them
    dots   what products with weights give; attention's scores, norms and activations are computed again
    full   what goes into the layer, and nothing inside it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

KEPT: dict[str, Any] = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": jax.checkpoint_policies.nothing_saveable}


def rematerialised(transform: Callable, layer: Any, policy: str, **options: Any) -> Any:
    """`layer` (a function or a module class) under `transform` (jax.checkpoint or nn.remat) with the policy of that name; itself for "none"."""
    return layer if policy == "none" else transform(layer, policy=KEPT[policy], **options)
