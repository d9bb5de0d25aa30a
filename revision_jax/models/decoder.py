"""The language decoder: LLaMA-2 / Vicuna and Qwen2 / 2.5 by `DecoderConfig`, with LoRA per level, the search signal, and a KV cache.

Parameters of all layers are stored stacked, with a leading layer axis. Without a cache (training, scoring) the layers run as one `nn.scan`
(`config.scan`), or unrolled over slices of the same tree; with a cache always unrolled, one cache per layer, because a scan would hold the whole
KV cache twice. Both give the same numbers. Collections:

    params  {"embed": {"embedding" [V H]}, "layers": {"attention_norm", "attention": {q k v o}, "mlp_norm", "mlp": {gate up down}}, "norm", "head"?}
    lora    {"layers": {"attention": {q: {a b}, ...}, "mlp": {...}, "signal_scale" [L K C]}, "summary_projection": {"kernel" [R H]}}

`apply` without the collection "lora" is the base model; every level has its own "lora" over one "params".

Slots and positions. A row of a batch is a line of M slots; a slot is causally before another if it lies left of it. Its RoPE position is given
explicitly and need not be its number: slots that hold nothing are holes, not valid, skipped by everyone, and take no position.

    slot      0      1 2 3 4 5 6 7     8 9 10 11     12 13 14
              BOS    v v v v v . .     q q q  .      a  a  (free)
              before visual tokens     question      answer
    valid     1      1 1 1 1 1 0 0     1 1 1  0      1  1  0
    position  0      1 2 3 4 5 - -     6 7 8  -      9  10
    reads     0      0 0 0 0 0 0 0     1 1 1  1      1  1
    signal    0      s s s s s 0 0     0 0 0  0      0  0  0

Sources: LLaMA-2 (arXiv 2307.09288), Qwen2 (arXiv 2407.10671), LoRA (arXiv 2106.09685); numerics follow transformers' LlamaForCausalLM and
Qwen2ForCausalLM. The search signal is this project's own (docs/architecture.md).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from revision_jax.config import DecoderConfig, LoraConfig, SignalConfig
from revision_jax.models.attention import attention, by_batch, cached_attention
from revision_jax.models.cache import write, write_layer
from revision_jax.models.context import apart, parts, read_bias, sequence_attention
from revision_jax.models.layers import GatedMlp, LoraLinear, RMSNorm
from revision_jax.models.quantize import is_quantized
from revision_jax.models.remat import rematerialised
from revision_jax.models.rope import angles_1d, rotate
from revision_jax.sharding.activations import constrain

# The bias is SIGNAL_GAIN * sum_c signal_scale_c * signal_c, with signal_scale stored as init / SIGNAL_GAIN. The factor changes nothing at the start;
# under Adam, whose steps do not know the size of a weight, it lets a scale of one become three within a few hundred steps at 1e-3.
SIGNAL_GAIN = 4.0


# ------------------------------------------------------------------------------------------------------------------- one layer


def _take(x: Array, rows: Int[Array, "B A"] | None) -> Array:
    """[B S ...] -> [B A ...]: the named slots of each row of the batch; all of them for None."""
    return x if rows is None else jnp.take_along_axis(x, rows.reshape(*rows.shape, *[1] * (x.ndim - 2)), axis=1)


def _signal_scale_init(config: DecoderConfig) -> Float[Array, "K C"]:
    """Starting scales per head and channel, over SIGNAL_GAIN. `level` and `square` start at `init`; `rise` and `fall` at 0.5 to 1 times init, even
    heads drawn to where the match begins and odd ones to where it ends, each by another amount, so that no two heads start alike."""
    heads = jnp.arange(config.heads)
    edge = jnp.where(heads % 2 == 0, 1.0, -1.0) * (0.5 + 0.5 * (heads // 2 + 1) / ((config.heads + 1) // 2))
    per_channel = {"level": jnp.ones_like(edge), "square": jnp.ones_like(edge), "rise": edge, "fall": -edge}
    return jnp.stack([per_channel[name] for name in config.signal.channels], axis=-1) * (config.signal.init / SIGNAL_GAIN)


class Attention(nn.Module):
    """Grouped-query self-attention with RoPE over the slots of this call, or over a cache that this call's slots are first written into.

    `rows` picks the A slots that ask (all if None); mask and reads have these rows. Every slot still has its key and value. columns: the search signal's
    bias in the rows that read it. segments: in place of the mask, see `Decoder.__call__`.
    """

    config: DecoderConfig
    rules: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S H"],
        angles: Float32[Array, "B S r"],
        mask: Bool[Array, "B 1 A M"] | None,
        reads: Bool[Array, "B A"] | None,
        columns: Float[Array, "B K M"] | None,
        cache: dict | None,
        start: Int[Array, "*b"] | int | None,
        rows: Int[Array, "B A"] | None,
        deterministic: bool,
        segments: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B A H"], dict | None]:
        c = self.config

        def linear(name: str, features: int, use_bias: bool) -> LoraLinear:
            return LoraLinear(features, use_bias=use_bias, lora=c.lora, name=name)

        def heads(name: str, count: int, x: Float[Array, "B n H"] = x) -> Float[Array, "B n k d"]:
            return linear(name, count * c.head_dim, c.qkv_bias)(x, deterministic).reshape(*x.shape[:2], count, c.head_dim)

        q = rotate(heads("q", c.heads, _take(x, rows)), _take(angles, rows))
        k, v = rotate(heads("k", c.kv_heads), angles), heads("v", c.kv_heads)
        if cache is not None:
            cache = write_layer(cache, k, v, start)
        if segments is not None:
            out = sequence_attention(q, k, v, segments, causal=True, reads=reads, columns=columns, implementation=c.attention, rules=self.rules)
        else:  # over a cache, or few rows: no kernel of whole sequences
            kernel = "xla" if c.attention == "splash" else c.attention

            def seen(q: Array, k: Array, v: Array, mask: Array, reads: Array | None, columns: Array | None, *before: Array) -> Array:
                bias = None if columns is None else read_bias(reads, columns)
                if cache is None:
                    return attention(q, k, v, mask=mask, bias=bias, implementation=kernel)
                return cached_attention(q, k, v, before=before or None, mask=mask, bias=bias, implementation=kernel)

            before = ()
            if cache is not None:
                k, v = cache["k"].astype(q.dtype), cache["v"].astype(q.dtype)
                before = tuple(cache["before"][name].astype(q.dtype) for name in ("k", "v")) if "before" in cache else ()
            shared = bool(before) and len(before[0]) != len(q)  # by rows of other numbers, which cannot be taken a few at a time with them
            attend = seen if shared else functools.partial(by_batch, seen, mask.shape[-1])
            out = attend(q, k, v, mask, reads, columns, *before)
        return linear("o", c.width, False)(out.reshape(*out.shape[:2], -1), deterministic), cache


class Block(nn.Module):
    """Pre-norm attention and gated MLP: one layer of the decoder."""

    config: DecoderConfig
    rules: str = "default"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S H"],
        angles: Float32[Array, "B S r"],
        mask: Bool[Array, "B 1 S M"] | None,
        reads: Bool[Array, "B S"] | None,
        signal: Float[Array, "B M C"] | None,
        cache: dict | None = None,
        start: Int[Array, "*b"] | int | None = None,
        rows: Int[Array, "B A"] | None = None,
        deterministic: bool = True,
        segments: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B A H"], dict | None]:
        c = self.config
        mask = mask if rows is None or mask is None else jnp.take_along_axis(mask, rows[:, None, :, None], axis=2)
        columns = None
        reads = None if reads is None else _take(reads, rows)
        if c.signal.enabled and (self.is_initializing() or self.has_variable("lora", "signal_scale")):
            scale = self.variable("lora", "signal_scale", _signal_scale_init, c).value
            if signal is not None and reads is not None:
                columns = jnp.einsum("kc,bmc->bkm", SIGNAL_GAIN * scale.astype(jnp.float32), signal.astype(jnp.float32))
        normed = RMSNorm(c.norm_eps, name="attention_norm")(x)
        y, cache = Attention(c, self.rules, name="attention")(normed, angles, mask, reads, columns, cache, start, rows, deterministic, segments)
        x = _take(x, rows) + y
        return x + GatedMlp(c.mlp, lora=c.lora, name="mlp")(RMSNorm(c.norm_eps, name="mlp_norm")(x), deterministic), cache


# --------------------------------------------------------------------------------------------------------------------- the decoder


class Decoder(nn.Module):
    """See the module's text. Methods: `embed`, `__call__`, `logits`; call them as `Decoder(config).apply({"params": .., "lora": ..}, ..., method=..)`."""

    config: DecoderConfig
    rules: str = "default"  # where hidden states lie, on a mesh (`sharding/activations.py`)

    def setup(self):
        c = self.config
        normal = nn.initializers.normal(c.width**-0.5)
        self.table = self.param("embed", lambda key: {"embedding": normal(key, (c.vocab, c.width))})["embedding"]
        self.layers = Block(c, self.rules)
        self.norm = RMSNorm(c.norm_eps)
        self.kernel = self.table.T if c.tie_embeddings else self.param("head", lambda key: {"kernel": normal(key, (c.width, c.vocab))})["kernel"]
        if c.signal.enabled and (self.is_initializing() or self.has_variable("lora", "summary_projection")):
            self.summary_kernel = self.variable("lora", "summary_projection", self._summary_init).value["kernel"]
        else:
            self.summary_kernel = None

    def _summary_init(self) -> dict:
        shape = (self.config.signal.top, self.config.width)
        # With init=0 the signal starts switched off altogether: a released checkpoint keeps its numbers.
        deviation = 0.1 * self.config.width**-0.5 * min(abs(self.config.signal.init), 1.0)
        return {"kernel": deviation * jax.random.normal(self.make_rng("lora"), shape)}

    def embed(self, ids: Int[Array, "B S"]) -> Float[Array, "B S H"]:
        """Token embeddings in the activations' dtype."""
        return self.table[ids].astype(self.config.dtype)

    def logits(self, hidden: Float[Array, "*B H"]) -> Float32[Array, "*B V"]:
        """Vocabulary logits, float32. Ask for the rows that have a label, not for all of them."""
        return jnp.einsum("...h,hv->...v", hidden, self.kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def __call__(
        self,
        embeds: Float[Array, "B S H"],
        positions: Int[Array, "B S"],
        valid: Bool[Array, "B S"],
        *,
        reads: Bool[Array, "B S"] | None = None,
        signal: Float[Array, "B M C"] | None = None,
        summary: Float[Array, "B R"] | None = None,
        cache: dict | None = None,
        start: Int[Array, "*b"] | int | None = None,
        rows: Int[Array, "B A"] | None = None,
        deterministic: bool = True,
        segments: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B A H"], dict | None]:
        """Runs all layers over the S slots of this call.

        embeds: token embeddings, visual tokens among them; positions: RoPE positions; valid: slots that hold something (others may hold garbage).
        reads: rows that get the search signal; signal: channels of *all* M slots (M = S without a cache), zero at text; summary: one vector a row
        of the batch, projected and added to the embeds of its `reads` slots. None, or a "lora" without these parameters, leaves the signal off.
        cache: from `init_cache`, with the new slots' first number `start` (one for all rows, or one each, Int[B]); the caller guarantees
        start + S <= M. A signal given once stays in the cache for later calls.
        rows: the slots, counted from this call's first, whose hidden states are wanted (all if None). Where the layers run unrolled, the last one works
        for these alone: a third of a shallow model's time when only an answer is scored, or when a prompt is prefilled for its last slot.
        segments: of packed rows, 1, 2, .. for the texts side by side, which do not see each other, and 0 where nothing is (`valid` says the same); no cache,
        signal or rows go with it.
        Returns (hidden [B A H] after the final norm, A = S without `rows`; the new cache or None). Rows without a valid slot before them hold no information.
        Raises ValueError if cache and start are not given together, or if slots known when traced do not fit.
        """
        c = self.config
        batch, length = valid.shape
        more = -length % parts(self.rules) if cache is None else 0
        if more:  # empty slots behind the last: a split sequence has equal parts
            fill = lambda x: None if x is None else jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2))
            rest = {"reads": fill(reads), "signal": fill(signal), "segments": fill(segments), "summary": summary, "rows": rows, "deterministic": deterministic}
            hidden, _ = self(fill(embeds), fill(positions), fill(valid), **rest)
            return hidden if rows is not None else hidden[:, :length], None
        embeds = self._laid(jnp.where(valid[..., None], embeds.astype(c.dtype), 0))  # a weight of zero does not silence a NaN
        if summary is not None and reads is not None and self.summary_kernel is not None:
            added = summary.astype(jnp.float32) @ self.summary_kernel.astype(jnp.float32)
            embeds = embeds + jnp.where((reads & valid)[..., None], added[:, None, :], 0.0).astype(embeds.dtype)
        angles = angles_1d(positions, c.head_dim, c.rope_theta)
        if segments is not None:
            if cache is not None or signal is not None or rows is not None:
                raise ValueError("decoder: packed rows (segments) go without cache, signal and rows")
            run = self._scanned if c.scan or self.is_initializing() else lambda *args: self._unrolled(*args[:5], None, None, None, *args[5:])[0]
            return self.norm(run(embeds, angles, None, None, None, deterministic, segments)), None
        if cache is None:
            mask = jnp.tril(jnp.ones((length, length), bool))[None, None] & valid[:, None, None, :]
            signal = None if signal is None else jnp.where(valid[..., None], signal, 0.0)
            if c.attention == "splash" or apart(c.attention, self.rules):
                mask, segments = None, valid.astype(jnp.int32)  # slots that hold nothing then see nothing, too
            if c.scan or self.is_initializing():
                hidden = _take(self._scanned(embeds, angles, mask, reads, signal, deterministic, segments), rows)
            elif segments is not None:
                hidden = _take(self._unrolled(embeds, angles, mask, reads, signal, None, None, None, deterministic, segments)[0], rows)
            else:
                hidden, _ = self._unrolled(embeds, angles, mask, reads, signal, None, None, rows, deterministic)
            return self.norm(hidden), None

        slots = cache["valid"].shape[1]
        if start is None:
            raise ValueError("decoder: a call with a cache needs start, the first of its slots")
        if length > slots or (isinstance(start, int) and start + length > slots):
            raise ValueError(f"decoder: {length} slots from {start} do not fit into a cache of {slots}")
        own = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (batch,))[:, None] + jnp.arange(length)
        cached_valid = write(cache["valid"], valid, start)
        mask = (jnp.arange(slots) <= own[..., None])[:, None] & cached_valid[:, None, None, :]
        signal = cache["signal"] if signal is None else signal
        # Not cleared by `valid`: a signal may be given before the slots it speaks of are filled. What is not seen is masked, and decoding has no gradient.
        hidden, layers = self._unrolled(embeds, angles, mask, reads, signal, cache["layers"], start, rows, deterministic)
        return self.norm(hidden), {"layers": layers, "valid": cached_valid, "signal": signal}

    def _laid(self, hidden: Float[Array, "B S H"]) -> Float[Array, "B S H"]:
        return constrain(hidden, self.rules, "batch", "position", "hidden")

    def _scanned(self, hidden, angles, mask, reads, signal, deterministic, segments=None):
        def body(block: Block, hidden: Array, _: None) -> tuple[Array, None]:
            return self._laid(block(hidden, angles, mask, reads, signal, deterministic=deterministic, segments=segments)[0]), None

        body = rematerialised(nn.remat, body, self.config.remat, prevent_cse=False)
        scan = nn.scan(
            body, variable_axes={"params": 0, "lora": 0}, split_rngs={"params": True, "lora": True, "dropout": True}, length=self.config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self.layers, hidden, None)[0]

    def _unrolled(self, hidden, angles, mask, reads, signal, caches, start, rows, deterministic, segments=None):
        block = Block(self.config, self.rules, parent=None)

        def run(layer: dict, hidden: Array, cache: dict | None, rows: Array | None, rngs: dict | None) -> tuple[Array, dict | None]:
            return block.apply(layer, hidden, angles, mask, reads, signal, cache, start, rows, deterministic, segments, rngs=rngs)

        if caches is None:
            run = rematerialised(jax.checkpoint, run, self.config.remat)
        trees = {name: tree["layers"] for name, tree in self.variables.items() if "layers" in tree}
        written = []
        for i in range(self.config.layers):
            rngs = {"dropout": self.make_rng("dropout")} if not deterministic and self.has_rng("dropout") else None
            layer = {name: tree[str(i)] if "0" in tree else jax.tree.map(lambda x, i=i: x[i], tree) for name, tree in trees.items()}
            hidden, cache = run(layer, hidden, None if caches is None else caches[i], rows if i == self.config.layers - 1 else None, rngs)
            hidden = self._laid(hidden)
            written.append(cache)
        return hidden, written

    def everything(self, ids: Int[Array, "B S"]) -> Float32[Array, "B S V"]:
        """Logits of plain text: every id valid, positions 0..S-1, no signal. `init` runs this."""
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        return self.logits(self(self.embed(ids), positions, jnp.ones(ids.shape, bool))[0])


# ---------------------------------------------------------------------------------------------------------------- parameters, LoRA


def _init(config: DecoderConfig, key: PRNGKeyArray) -> dict:
    params_key, lora_key = jax.random.split(key)
    return Decoder(config).init({"params": params_key, "lora": lora_key}, jnp.zeros((1, 1), jnp.int32), method=Decoder.everything)


def init_decoder(config: DecoderConfig, key: PRNGKeyArray) -> dict:
    """{"params": base weights}, float32, plain nested dicts, layers stacked. Works under `jax.eval_shape`."""
    bare = DecoderConfig(**{**vars(config), "lora": LoraConfig(rank=0), "signal": SignalConfig()})
    return {"params": jax.jit(_init, static_argnums=0)(bare, key)["params"]}


def init_lora(config: DecoderConfig, key: PRNGKeyArray) -> dict:
    """A fresh collection "lora" of one level: LoRA pairs that change nothing yet, and the search signal's parameters. {} where config has neither."""
    return jax.jit(lambda key: _init(config, key).get("lora", {}))(key)  # under jit the base weights are never made


def merge_lora(config: DecoderConfig, params: dict, lora: dict) -> tuple[dict, dict]:
    """Folds the LoRA pairs into the base: kernel + scale * a b, in float32, kept in the kernel's dtype.

    Returns (params of the same structure, what is left of `lora`: the signal's parameters); applied together they give what (params, lora) give,
    without dropout, and faster. Layers in which `lora` has no pair stay as they are. There is no way back but the original. Raises ValueError for an int8 base.
    """

    def fold(base: dict, pairs: dict) -> tuple[dict, dict]:
        if "a" in pairs:
            if is_quantized(base):
                raise ValueError("merge_lora: the base is int8, which a LoRA cannot be folded into; dequantize it first")
            delta = jnp.einsum("...ir,...ro->...io", pairs["a"].astype(jnp.float32), pairs["b"].astype(jnp.float32)) * config.lora.scale
            return {**base, "kernel": (base["kernel"].astype(jnp.float32) + delta).astype(base["kernel"].dtype)}, {}
        merged, left = dict(base), {}
        for name, item in pairs.items():
            if isinstance(item, dict) and name in base:
                merged[name], rest = fold(base[name], item)
                if rest:
                    left[name] = rest
            else:
                left[name] = item
        return merged, left

    return fold(params, lora)


def split_layers(params: dict) -> dict:
    """`params` with "layers" as {"0": .., "1": ..} in place of stacked arrays: for decoding alone, where taking a layer out of a stack would copy all weights
    at every token. With NumPy arrays the layers are views; layers that are already apart stay as they are."""
    if "0" in params["layers"]:
        return params
    count = len(jax.tree.leaves(params["layers"])[0])
    return {**params, "layers": {str(i): jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count)}}
