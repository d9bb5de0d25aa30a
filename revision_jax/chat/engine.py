"""The compiled programs of a conversation, each with few static shapes: encode frames, read a prompt into the cache, one token more.

    encode   frames of one size, filled up to a bucket of patches (PATCHES), as many at once as fit WORK; what is pruned before the encoder leaves its place
             to other frames' patches (`data/compaction.py`), LINES at once
    read     a chunk of a prompt (CHUNKS), text and visual tokens mixed, into a cache of a bucket's length (`slots_for`)
    step     one token for every row

Rows of a batch are prompts; unequal ones are padded in front. Slots are never left empty behind: a chunk that is not full is written over by the next.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from revision_jax.chat.sampling import Sampling, pick
from revision_jax.config import ConfigError, ExperimentConfig, VisionConfig
from revision_jax.data import frames as host_frames
from revision_jax.data.chat_template import Prompt
from revision_jax.data.compaction import lines
from revision_jax.models import revision
from revision_jax.models.adapter import make_adapter
from revision_jax.models.cache import grow, init_cache
from revision_jax.models.decoder import Decoder, split_layers

PATCHES = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536)
WORK = 2**24  # frames x patches^2 of one call: bounds the attention scores of a call to this times heads numbers
FRAMES = 64
LINES = 4  # few, because the last call's are filled up with empty ones
CHUNKS = (32, 512)
SLOTS = 512  # the smallest cache; the next ones are twice as long each


class Batch(NamedTuple):
    """Prompts side by side, ready to be read: padded in front."""

    ids: Int[np.ndarray, "B S"]
    visual: Shaped[np.ndarray, "B S H"]  # visual tokens in their places
    is_visual: Bool[np.ndarray, "B S"]
    valid: Bool[np.ndarray, "B S"]
    positions: Int[np.ndarray, "B S"]


def slots_for(needed: int, most: int) -> int:
    """Length of the cache bucket that holds `needed` of at most `most` slots, and a chunk that is not full behind them."""
    slots = SLOTS
    while slots < needed + CHUNKS[-1]:
        slots *= 2
    return max(needed, min(slots - CHUNKS[-1], most)) + CHUNKS[-1]


def projector_level(config: ExperimentConfig) -> str:
    """The level whose adapter projects visual tokens for free conversation. Raises ConfigError unless there is just one."""
    names = [level.name for level in config.grounding.levels if level.kind == "patch" and level.adapter.kind == "mlp"]
    if len(names) != 1 or config.encoder(config.patch_encoder).position != "rope2d":
        raise ConfigError(f"grounding.levels: to chat a model needs one patch level with an 'mlp' adapter over an encoder with 2-D RoPE, has {len(names)}")
    return names[0]


def used(config: ExperimentConfig) -> tuple[str, ...]:
    """The subtrees of a state that a conversation needs: the patch encoder, its adapter and the bare decoder. Raises ConfigError for a model without."""
    level, projection = projector_level(config), config.patch_encoder == "vision" and config.vision.projection
    return (f"params/{config.patch_encoder}", *(("params/projection",) if projection else ()), f"adapter/{level}", "params/decoder")


# ------------------------------------------------------------------------------------------------------------------------ programs


@functools.partial(jax.jit, static_argnames=("config", "level"))
def _encode(
    config: ExperimentConfig, level: str, params: dict, patches: Float[Array, "B P C"], rows: Int[Array, "#B P"], columns: Int[Array, "#B P"],
    valid: Bool[Array, "B P"], segments: Int[Array, "B P"] | None = None,
) -> Float[Array, "B N H"]:
    encoder = config.patch_encoder
    merge = config.encoder(encoder).merge
    spread = lambda x: jnp.broadcast_to(x, valid.shape)
    grid = (merge, patches.shape[1] // merge)  # patches are block-major: whatever the true grid, each m^2 of them are one token
    out = revision.encode_frames(config, params, patches.astype(config.decoder.dtype), spread(rows), spread(columns), valid, grid, encoder, segments)
    return make_adapter(config.grounding.level(level).adapter, config.decoder.width).apply({"params": params["adapter"]}, out["tokens"])


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _read(config: ExperimentConfig, params: dict, cache: dict, batch: Batch, start: Int[Array, ""]) -> tuple[Float[Array, "B V"], dict]:
    """Logits behind the last valid slot of each row, and the cache with the chunk in it."""
    decoder, weights = Decoder(config.decoder), {"params": params["decoder"]}
    text = decoder.apply(weights, batch.ids, method=Decoder.embed)
    embeds = jnp.where(batch.is_visual[..., None], batch.visual.astype(text.dtype), text)
    last = revision.last_valid(batch.valid)[:, None]
    hidden, cache = decoder.apply(weights, embeds, batch.positions, batch.valid, cache=cache, start=start, rows=last)
    return decoder.apply(weights, hidden[:, 0], method=Decoder.logits), cache


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _step(
    config: ExperimentConfig, params: dict, cache: dict, token: Int[Array, "B"], position: Int[Array, "B"], start: Int[Array, ""]
) -> tuple[Float[Array, "B V"], dict]:
    decoder, weights = Decoder(config.decoder), {"params": params["decoder"]}
    embeds = decoder.apply(weights, token[:, None], method=Decoder.embed)
    hidden, cache = decoder.apply(weights, embeds, position[:, None], jnp.ones_like(token, bool)[:, None], cache=cache, start=start)
    return decoder.apply(weights, hidden[:, 0], method=Decoder.logits), cache


_pick = jax.jit(pick, static_argnames="sampling", donate_argnames="seen")


# -------------------------------------------------------------------------------------------------------------------------- engine


class Engine:
    """A model's weights on the device, and what can be done with them. Holds no conversation."""

    def __init__(self, config: ExperimentConfig, state: dict):
        """state: as `models.revision.init_state` makes it, or what `used` names of it. Raises ConfigError."""
        self.config, self.level = config, projector_level(config)
        params = {part.removeprefix("params/"): state["params"][part.removeprefix("params/")] for part in used(config) if part.startswith("params/")}
        params |= {"adapter": state[f"adapter/{self.level}"], "decoder": split_layers(params["decoder"])}
        self.params: dict[str, Any] = jax.device_put(params)
        self._merged: dict[int, ExperimentConfig] = {}

    def _with_merge(self, merge: int) -> ExperimentConfig:
        """The config with another merge size: images and videos may have one each, over the same weights."""
        if merge not in self._merged:
            encoder = self.config.patch_encoder
            vision = dataclasses.replace(self.config.encoder(encoder), merge=merge, grids=((merge, merge),))
            self._merged[merge] = dataclasses.replace(self.config, **{encoder: vision})
        return self._merged[merge]

    def encode(self, frames: UInt8[np.ndarray, "T h w 3"], keep: Bool[np.ndarray, "T N"], merge: int) -> Shaped[np.ndarray, "M H"]:
        """The kept tokens of all frames, projected to the decoder's width, in the decoder's dtype. Sides are multiples of patch * merge."""
        config = self._with_merge(merge)
        vision, square = config.encoder(config.patch_encoder), merge * merge
        grid = (frames.shape[1] // vision.patch, frames.shape[2] // vision.patch)
        count = grid[0] * grid[1]
        bucket = next((size for size in PATCHES if size >= count), count)
        bucket += -bucket % square
        together = max(1, min(FRAMES, WORK // bucket**2))
        # Before the encoder, dropped tokens are not even seen; after it, all are encoded and dropped then.
        if config.pruner.where == "before_encoder" and not keep.all():
            return self._encode_kept(config, frames, keep, vision, bucket, min(LINES, together))
        index = np.zeros((2, 1, bucket), np.int32)
        index[:, 0, :count] = host_frames.positions(grid, merge)
        out = []
        for first in range(0, len(frames), together):
            part = frames[first : first + together]
            patches = np.zeros((together, bucket, 3 * vision.patch**2), np.float32)
            patches[: len(part), :count] = host_frames.encoder_patches(part, vision)
            valid = np.zeros((together, bucket), bool)
            valid[: len(part), :count] = True
            tokens = _encode(config, self.level, self.params, patches, *index, valid)
            out.append(np.asarray(tokens.astype(self.config.decoder.dtype))[: len(part), : count // square][keep[first : first + together]])
        return np.concatenate(out)

    def _encode_kept(
        self, config: ExperimentConfig, frames: UInt8[np.ndarray, "T h w 3"], keep: Bool[np.ndarray, "T N"], vision: VisionConfig, length: int, together: int
    ) -> Shaped[np.ndarray, "M H"]:
        """`encode` of the kept patches alone, in lines of `length`."""
        out = np.zeros((int(keep.sum()), config.decoder.width), jnp.dtype(config.decoder.dtype))
        for part in lines(frames, keep, vision, length, together):
            tokens = _encode(config, self.level, self.params, part.patches, part.rows, part.columns, part.segments > 0, part.segments)
            there = part.tokens >= 0
            out[part.tokens[there]] = np.asarray(tokens.astype(out.dtype))[there]
        return out

    def batch(self, prompts: Sequence[Prompt], shown: Sequence[Shaped[np.ndarray, "_ H"]]) -> Batch:
        """Prompts with their visual tokens, side by side. The tokens of a prompt are as many as its places."""
        size, width = max(len(prompt.ids) for prompt in prompts), self.config.decoder.width
        ids = np.zeros((len(prompts), size), np.int32)
        is_visual, valid = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        visual = np.zeros((*ids.shape, width), jnp.dtype(self.config.decoder.dtype))
        for row, (prompt, tokens) in enumerate(zip(prompts, shown, strict=True)):
            first = size - len(prompt.ids)
            ids[row, first:], is_visual[row, first:], valid[row, first:] = prompt.ids, prompt.visual, True
            visual[row, is_visual[row]] = tokens
        return Batch(ids, visual, is_visual, valid, np.maximum(np.cumsum(valid, 1) - 1, 0))

    def new_cache(self, rows: int, slots: int) -> dict:
        return init_cache(self.config.decoder, rows, slots)

    def grown(self, cache: dict, slots: int) -> dict:
        """The cache with room for `slots` slots."""
        more = slots - cache["valid"].shape[1]
        return grow(cache, more) if more > 0 else cache

    def read(self, cache: dict, batch: Batch, start: int) -> tuple[Float[Array, "B V"], dict]:
        """Reads prompts into slots from `start` on, chunk by chunk: (logits of the next token, cache). The cache given is used up."""
        length, done, logits = batch.ids.shape[1], 0, None
        while done < length:
            size = next((size for size in CHUNKS if size >= length - done), CHUNKS[-1])
            part = [x[:, done : done + size] for x in batch]
            full = Batch(*(np.pad(x, ((0, 0), (0, size - x.shape[1])) + ((0, 0),) * (x.ndim - 2)) for x in part))
            logits, cache = _read(self.config, self.params, cache, full, np.int32(start + done))
            done += size
        return logits, cache

    def step(self, cache: dict, token: Int[Array, "B"], position: Int[np.ndarray, "B"], start: int) -> tuple[Float[Array, "B V"], dict]:
        """Puts one token a row into slot `start`: (logits of the next one, cache). The cache given is used up."""
        return _step(self.config, self.params, cache, token, position, np.int32(start))

    def pick(self, logits: Float[Array, "B V"], seen: Bool[Array, "B V"], key: Array, sampling: Sampling) -> tuple[Int[Array, "B"], Bool[Array, "B V"]]:
        """(next token, `seen` with it)."""
        return _pick(logits, seen, key, sampling)

    def seen(self, ids: Sequence[Int[np.ndarray, "_"]]) -> Bool[np.ndarray, "B V"]:
        """Which tokens each row's text holds so far, for the repetition penalty."""
        seen = np.zeros((len(ids), self.config.decoder.vocab), bool)
        for row, own in enumerate(ids):
            seen[row, own] = True
        return seen

    def generate(
        self, prompts: Sequence[Prompt], shown: Sequence[Shaped[np.ndarray, "_ H"]], steps: int, *, sampling: Sampling = Sampling(),  # noqa: B008  frozen
        seed: int = 0, stops: Sequence[int] = (),
    ) -> tuple[Int[np.ndarray, "B L"], Float[np.ndarray, "B L V"]]:
        """Answers to several prompts at once: (tokens, the logits that each was picked from). L <= steps: it ends when every row has met a stop.

        What a row holds behind its stop means nothing.
        """
        batch = self.batch(prompts, shown)
        length = batch.ids.shape[1]
        logits, cache = self.read(self.new_cache(len(prompts), slots_for(length + steps, 1 << 30)), batch, 0)
        seen = jnp.asarray(self.seen([prompt.ids for prompt in prompts]))
        return self.answer(logits, cache, batch.positions[:, -1] + 1, length, seen, steps, sampling=sampling, seed=seed, stops=stops)

    def answer(
        self, logits: Float[Array, "B V"], cache: dict, position: Int[np.ndarray, "B"], start: int, seen: Bool[Array, "B V"], steps: int, *,
        sampling: Sampling = Sampling(), seed: int = 0, stops: Sequence[int] = (),  # noqa: B008  frozen
    ) -> tuple[Int[np.ndarray, "B L"], Float[np.ndarray, "B L V"]]:
        """What follows on prompts that have been read: `logits` behind them, the next token's position and slot. As `generate`. The cache is used up."""
        key, done = jax.random.key(seed), np.zeros(len(position), bool)
        tokens, told = [], []
        for step in range(steps):
            token, seen = self.pick(logits, seen, jax.random.fold_in(key, step), sampling)
            told.append(np.asarray(logits))
            tokens.append(np.asarray(token))
            done |= np.isin(tokens[-1], stops)
            if done.all() or step == steps - 1:
                break
            logits, cache = self.step(cache, token, position + step, start + step)
        return np.stack(tokens, 1), np.stack(told, 1)
