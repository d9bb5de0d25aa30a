"""VideoLLaMA3 over packed rows: patches of all pictures -> encoder -> visual tokens in their places -> decoder.

A row holds several conversations, its arrays are those of `data/packed_row.py`. Pictures attend inside themselves, conversations inside themselves, positions
begin anew in each: the numbers are those of every conversation by itself.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from revision_jax.config import ExperimentConfig, VisionConfig
from revision_jax.models.adapter import make_adapter
from revision_jax.models.decoder import Decoder
from revision_jax.models.vision import VisionTransformer

Batch = dict[str, Array]


def normalised(pixels: UInt8[Array, "*B C"], vision: VisionConfig) -> Float[Array, "*B C"]:
    """Patches of bytes, channel-first, as the encoder reads them: the float32 of `data.frames.encoder_patches`."""
    spread = lambda values: jnp.repeat(jnp.asarray(values, jnp.float32), vision.patch**2)
    std = spread(vision.std)
    return pixels.astype(jnp.float32) * (1.0 / (255.0 * std)) - spread(vision.mean) / std


def encoded(config: ExperimentConfig, params: dict, batch: Batch) -> Float[Array, "B M D"]:
    """The patches of all slots after the encoder, size after size, slot after slot; zero where nothing is. Computed in the decoder's dtype."""
    vision, found = config.encoder(config.patch_encoder), []
    kernel = "splash" if config.decoder.attention == "splash" else "xla"
    tower = VisionTransformer(vision, remat=config.decoder.remat, attention=kernel, rules=config.mesh.rules)
    k = 0
    while f"pixels_{k}" in batch:
        line = lambda name, k=k: batch[f"{name}_{k}"].reshape(-1, *batch[f"{name}_{k}"].shape[2:])  # slots of all rows are the encoder's batch
        patches = normalised(line("pixels"), vision).astype(config.decoder.dtype)
        pictures = line("pictures")
        out = tower.apply({"params": params[config.patch_encoder]}, patches, line("rows"), line("columns"), pictures > 0, pictures)["tokens"]
        found.append(out.reshape(len(batch["ids"]), -1, out.shape[-1]))
        k += 1
    return jnp.concatenate(found, 1)


def visual_tokens(config: ExperimentConfig, state: dict, level: str, batch: Batch) -> Float[Array, "B N H"]:
    """The kept tokens of all pictures, merged and projected. What stands behind the last of them means nothing."""
    patches = encoded(config, state["params"], batch)
    parts: Int[Array, "B N 4"] = batch["parts"]
    flat = jnp.take_along_axis(patches, parts.reshape(len(parts), -1, 1), 1)
    merged = flat.reshape(*parts.shape, -1).astype(jnp.float32).mean(2).astype(patches.dtype)
    projector = make_adapter(config.grounding.level(level).adapter, config.decoder.width)
    return projector.apply({"params": state[f"adapter/{level}"]}, merged)


def hidden(config: ExperimentConfig, state: dict, level: str, batch: Batch) -> Float[Array, "B S H"]:
    """The decoder's last hidden states, after its norm. `level` names the projector; the decoder is the bare one, without LoRA and search signal."""
    decoder, weights = Decoder(config.decoder, config.mesh.rules), {"params": state["params"]["decoder"]}
    embeds = decoder.apply(weights, batch["ids"], method=Decoder.embed)
    if "parts" in batch:
        shown = visual_tokens(config, state, level, batch).astype(embeds.dtype)
        where = batch["visual"]
        embeds = jnp.where((where >= 0)[..., None], jnp.take_along_axis(shown, jnp.maximum(where, 0)[..., None], 1), embeds)
    return decoder.apply(weights, embeds, batch["positions"], batch["segments"] > 0, segments=batch["segments"])[0]
