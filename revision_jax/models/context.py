"""Attention of a whole sequence on a mesh: its positions split over the axis "context", its heads over "tensor".

Where the mesh splits nothing, or nothing that the implementation minds, this is plain attention and the compiler's own partitioning. Else it runs inside
`jax.shard_map`, one of two ways, chosen from sizes alone:

    Ulysses   the heads go round: an all-to-all gives every device all positions of a few heads, attention runs there as on one device, and a second
              all-to-all gives the positions back. For heads that divide by the axis; KV heads that do not are repeated until they do.
    ring      the keys go round: every device keeps its rows and passes its keys and values to its neighbour, as many times as there are devices; softmax
              is summed up on the way, in float32. For everything else. The backward pass is a second ring.

No device ever holds all keys of all heads. Sources: DeepSpeed-Ulysses (arXiv 2309.14509), Ring Attention (arXiv 2310.01889), gradients of blocks as in
FlashAttention-2 (arXiv 2307.08691).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from revision_jax.models.attention import attention
from revision_jax.models.segments import segment_attention, segment_mask
from revision_jax.sharding.rules import Axis, Rules
from revision_jax.sharding.strategies import rules_named


def apart(implementation: str, rules: str, position: bool = True) -> bool:
    """Whether attention runs inside `shard_map` where this is traced: the sequence is split, or a kernel that the compiler cannot split meets a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and (implementation == "splash" or (position and _axis_size(_along(rules_named(rules))) > 1))


def parts(rules: str) -> int:
    """Into how many parts the positions of a sequence are split where this is traced. A length that they do not divide costs gathers in every layer."""
    return 1 if jax.sharding.get_abstract_mesh().empty else _axis_size(_along(rules_named(rules)))


def sequence_attention(
    q: Float[Array, "B S K d"],
    k: Float[Array, "B S G d"],
    v: Float[Array, "B S G d"],
    segments: Int[Array, "B S"],
    *,
    causal: bool,
    reads: Bool[Array, "B S"] | None = None,
    columns: Float[Array, "B K S"] | None = None,
    implementation: str = "xla",
    rules: str = "default",
    batch: str = "batch",
    position: bool = True,
) -> Float[Array, "B S K d"]:
    """`segment_attention` plus the search signal's bias, `columns` in the rows that `reads` names, wherever the arrays lie.

    batch: logical axis of the first dimension; position: whether the second is split as `Rules.position` says, or whole. Rows of segment 0 give zeros; what
    stands in segment 0 must be finite. The ring multiplies by itself, whatever the implementation. Raises ConfigError where the implementation has no bias.
    """
    if not apart(implementation, rules, position):
        return _local(q, k, v, segments, reads, columns, causal, implementation)
    chosen = rules_named(rules)
    rows = _fitting(chosen.axis(batch), q.shape[0])
    across = _fitting(chosen.act_heads, math.gcd(q.shape[2], k.shape[2]))
    along = _along(chosen) if position else None
    length, split = q.shape[1], _axis_size(along)
    padded = lambda x, axis=1: x if x is None else jnp.pad(x, [(0, -length % split if number == axis else 0) for number in range(x.ndim)])
    arrays = [padded(q), padded(k), padded(v), padded(segments), padded(reads), padded(columns, 2)]
    repeats = ulysses_repeats(q.shape[2] // _axis_size(across), k.shape[2] // _axis_size(across), split)
    inner = across  # of the bias' heads
    if split == 1:
        run = functools.partial(_local, causal=causal, implementation=implementation)
    elif repeats is not None:
        run = functools.partial(ulysses, axis=along, repeats=repeats, causal=causal, implementation=implementation)
        inner = (*_names(across), *_names(along))
    else:
        run = functools.partial(ring, axis=along, causal=causal)
    lies = P(rows, along, across, None)
    specs = (lies, lies, lies, P(rows, None), P(rows, None), P(rows, inner, None))
    given = [number for number, array in enumerate(arrays) if array is not None]

    def body(*present: Array) -> Array:
        full = [None] * len(arrays)
        for number, array in zip(given, present, strict=True):
            full[number] = array
        return run(*full)

    # Values that all devices of an axis have alike are not told apart from others (check_vma): kernels cannot say which theirs are.
    out = jax.shard_map(body, in_specs=tuple(specs[number] for number in given), out_specs=lies, check_vma=False)(*(arrays[number] for number in given))
    return out[:, :length]


def _names(axis: Axis) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else tuple(axis or ())


def _axis_size(axis: Axis) -> int:
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[name] for name in _names(axis))


def _along(rules: Rules) -> Axis:
    """The mesh axes of the positions inside attention: those of the heads are theirs (Megatron's sequence parallelism splits both over "tensor")."""
    return tuple(name for name in _names(rules.position) if name not in _names(rules.act_heads)) or None


def _fitting(axis: Axis, size: int) -> Axis:
    """The mesh axis, or None where it does not divide a dimension: that one is whole on every device then."""
    return axis if size % _axis_size(axis) == 0 else None


def _local(q, k, v, segments, reads, columns, causal: bool, implementation: str):
    if columns is None:
        return segment_attention(q, k, v, segments, causal=causal, implementation=implementation)
    mask = segment_mask(segments, segments, causal)
    return attention(q, k, v, mask=mask, bias=read_bias(reads, columns), implementation=implementation)


def read_bias(reads: Bool[Array, "B A"], columns: Float[Array, "B K M"]) -> Float[Array, "B K A M"]:
    """The search signal's bias: `columns` in the rows that read it, nothing in the others."""
    return jnp.where(reads[:, None, :, None], columns[:, :, None, :], 0.0)


# ------------------------------------------------------------------------------------------------------------------------- Ulysses


def ulysses_repeats(heads: int, groups: int, parts: int) -> int | None:
    """How often each KV head is repeated so that heads and KV heads divide by `parts` devices; None where heads do not. 1 where they divide as they are."""
    repeats = parts // math.gcd(groups, parts)
    return repeats if heads % parts == 0 and heads % (groups * repeats) == 0 else None


def ulysses(q, k, v, segments, reads, columns, *, axis: Axis, repeats: int, causal: bool, implementation: str):
    """Of one device, inside `shard_map`: its positions of q, k, v, all of `segments` and `reads`, `columns` of the heads that it gets."""
    k, v = (jnp.repeat(x, repeats, axis=2) for x in (k, v))
    swap = lambda x: jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True)
    out = _local(swap(q), swap(k), swap(v), segments, reads, columns, causal, implementation)
    return jax.lax.all_to_all(out, axis, split_axis=1, concat_axis=2, tiled=True)


# ---------------------------------------------------------------------------------------------------------------------------- ring


@dataclass(frozen=True)
class _Ring:
    """What does not change on the way round: static."""

    axis: Axis
    parts: int
    causal: bool
    scale: float

    def pass_on(self, *arrays: Array) -> tuple[Array, ...]:
        to = [(device, (device + 1) % self.parts) for device in range(self.parts)]
        return tuple(jax.lax.ppermute(x, self.axis, to) for x in arrays)

    def scores(self, q, k, segments, reads, columns, source):
        """(float32 scores [b G r s m] of the own rows against the keys that came from device `source`, which of them count [b 1 1 s m])."""
        size, me = q.shape[1], jax.lax.axis_index(self.axis)
        here = lambda x, device, axis=1: jax.lax.dynamic_slice_in_dim(x, device * size, size, axis)
        seen = segment_mask(here(segments, me), here(segments, source), False)
        if self.causal:
            seen &= (source * size + jnp.arange(size)) <= (me * size + jnp.arange(size))[:, None]
        scores = jnp.einsum("bsgrd,bmgd->bgrsm", q, k, preferred_element_type=jnp.float32) * self.scale
        if columns is not None:
            bias = read_bias(here(reads, me), here(columns, source, 2).astype(jnp.float32))
            scores = scores + bias.reshape(*scores.shape)
        return scores, seen[:, :, None]

    def rounds(self, step, carry, k, v, *along):
        """(carry, *along) after `step(carry, source, k, v, *along) -> (carry, *along)` at the keys of every device in turn; what goes along comes home."""
        me = jax.lax.axis_index(self.axis)

        def body(state, number):
            carry, *sent = state
            k, v, *along = self.pass_on(*sent)
            carry, *along = step(carry, (me - number) % self.parts, k, v, *along)
            return (carry, k, v, *along), None

        carry, *along = step(carry, me, k, v, *along)
        (carry, _, _, *along), _ = jax.lax.scan(body, (carry, k, v, *along), jnp.arange(1, self.parts))
        return carry, *self.pass_on(*along)


def ring(q, k, v, segments, reads, columns, *, axis: Axis, causal: bool):
    """Of one device, inside `shard_map`: its positions of q, k, v, all of `segments`, `reads` and of its heads' `columns`."""
    batch, size, _, width = q.shape
    grouped = q.reshape(batch, size, k.shape[2], -1, width)
    about = _Ring(axis, _axis_size(axis), causal, width**-0.5)
    return _ring(about, grouped, k, v, segments, reads, columns).reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(about: _Ring, q, k, v, segments, reads, columns):
    return _ring_forward(about, q, k, v, segments, reads, columns)[0]


def _ring_forward(about: _Ring, q, k, v, segments, reads, columns):
    batch, size, groups, each, width = q.shape
    lowest = jnp.finfo(jnp.float32).min

    def step(carry, source, k, v):
        most, total, out = carry
        scores, seen = about.scores(q, k, segments, reads, columns, source)
        higher = jnp.maximum(most, jnp.where(seen, scores, lowest).max(-1))
        weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0.0)
        shrunk = jnp.exp(most - higher)
        out = out * shrunk[..., None] + jnp.einsum("bgrsm,bmgd->bgrsd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return ((higher, total * shrunk + weights.sum(-1), out),)

    rows = (batch, groups, each, size)
    begin = jnp.full(rows, lowest), jnp.zeros(rows, jnp.float32), jnp.zeros((*rows, width), jnp.float32)
    ((most, total, out),) = about.rounds(step, begin, k, v)
    out = jnp.moveaxis(out / jnp.where(total > 0, total, 1.0)[..., None], 3, 1).astype(q.dtype)
    spread = jnp.where(total > 0, most + jnp.log(jnp.where(total > 0, total, 1.0)), 0.0)  # log of the sum of all exponentials of a row
    return out, (q, k, v, segments, reads, columns, out, spread)


def _ring_backward(about: _Ring, kept, grad):
    q, k, v, segments, reads, columns, out, spread = kept
    size = q.shape[1]
    grad32 = grad.astype(jnp.float32)
    own = jnp.einsum("bsgrd,bsgrd->bgrs", grad32, out.astype(jnp.float32))

    def step(carry, source, k, v, dk, dv):
        dq, dcolumns = carry
        scores, seen = about.scores(q, k, segments, reads, columns, source)
        weights = jnp.where(seen, jnp.exp(scores - spread[..., None]), 0.0)
        dv = dv + jnp.einsum("bgrsm,bsgrd->bmgd", weights, grad32)
        dscores = weights * (jnp.einsum("bsgrd,bmgd->bgrsm", grad, v, preferred_element_type=jnp.float32) - own[..., None])
        narrow = dscores.astype(q.dtype)
        dq = dq + jnp.einsum("bgrsm,bmgd->bsgrd", narrow, k, preferred_element_type=jnp.float32) * about.scale
        dk = dk + jnp.einsum("bgrsm,bsgrd->bmgd", narrow, q, preferred_element_type=jnp.float32) * about.scale
        if columns is not None:
            read = jax.lax.dynamic_slice_in_dim(reads, jax.lax.axis_index(about.axis) * size, size, 1)
            there = jnp.einsum("bgrsm,bs->bgrm", dscores, read.astype(jnp.float32)).reshape(*columns.shape[:2], size)
            dcolumns = jax.lax.dynamic_update_slice_in_dim(dcolumns, there, source * size, 2)
        return (dq, dcolumns), dk, dv

    wide = lambda x: jnp.zeros(x.shape, jnp.float32)
    begin = wide(q), None if columns is None else wide(columns)
    (dq, dcolumns), dk, dv = about.rounds(step, begin, k, v, wide(k), wide(v))
    dcolumns = None if columns is None else dcolumns.astype(columns.dtype)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None, dcolumns


_ring.defvjp(_ring_forward, _ring_backward)
