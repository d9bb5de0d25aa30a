"""What a stage of conversations minimises: next-token cross-entropy at the learnt tokens of packed rows, each of them counting the same.

The vocabulary is met at labels alone, some at a time: 4,096 labels of a row against 152,000 tokens would be 2.5 GB of logits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from revision_jax.config import ExperimentConfig, StageConfig
from revision_jax.models import packed
from revision_jax.models.decoder import Decoder
from revision_jax.training.means import Mean, Metrics

CHUNK = 256  # labels of each row that meet the vocabulary at once


def conversation_loss(config: ExperimentConfig, stage: StageConfig, state: dict, batch: dict) -> tuple[Array, Metrics]:
    """(mean cross-entropy over all labels of the batch, metrics), float32. batch: rows of `data/packed_row.py`, stacked."""
    states = packed.hidden(config, state, stage.level, batch)
    asked = jnp.take_along_axis(states, batch["label_slots"][..., None], 1)
    mask = batch["label_mask"]
    total, right = label_losses(config, state, asked, batch["label_ids"], mask)
    count = mask.sum(dtype=jnp.float32)
    tokens = batch["segments"] > 0
    filled = {"tokens": tokens.sum(dtype=jnp.float32), "slots": jnp.float32(tokens.size), "filled": Mean.of(tokens, jnp.ones(tokens.shape))}
    loss = Mean(total, count)
    return loss.value, {"loss": loss, "accuracy": Mean(right, count), "conversations": batch["segments"].max(1).sum(dtype=jnp.float32), **filled}


def label_losses(
    config: ExperimentConfig, state: dict, states: Float[Array, "B L H"], ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(sum of the labels' cross-entropies, how many are the likeliest token), chunk by chunk; logits are made again in the backward pass."""
    weights = {"params": state["params"]["decoder"]}
    size = min(CHUNK, ids.shape[1])
    padded = -ids.shape[1] % size
    chunks = lambda x: jnp.moveaxis(jnp.pad(x, ((0, 0), (0, padded)) + ((0, 0),) * (x.ndim - 2)).reshape(len(x), -1, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def chunk(weights: dict, states: Array, ids: Array, mask: Array) -> tuple[Array, Array]:
        logits = Decoder(config.decoder, config.mesh.rules).apply(weights, states, method=Decoder.logits)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        right = (jnp.argmax(logits, -1) == ids) & mask
        return jnp.where(mask, losses, 0.0).sum(), right.sum(dtype=jnp.float32)

    def add(sums: tuple[Array, Array], part: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        loss, right = chunk(weights, *part)
        return (sums[0] + loss, sums[1] + right), None

    (total, right), _ = jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), (chunks(states), chunks(ids), chunks(mask)))
    return total, right
