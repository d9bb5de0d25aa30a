"""The decoder: numbers of transformers, caches, LoRA, the search signal, and pads that must not matter."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import DecoderConfig, ExperimentConfig, LoraConfig, SignalConfig
from revision_jax.convert.llama import LLAMA
from revision_jax.convert.load import load_state
from revision_jax.convert.source import ArraySource
from revision_jax.models.cache import behind, fork, init_cache, stack_caches
from revision_jax.models.decoder import SIGNAL_GAIN, Decoder, init_decoder, init_lora, merge_lora
from tests.golden.make_decoder import CONFIGS, LIVE, reference

GOLDEN = Path(__file__).parents[1] / "golden"
SIGNAL = SignalConfig(enabled=True, similarity="late", channels=("level", "square", "rise", "fall"), init=1.0)
CONFIG = DecoderConfig(
    vocab=40, width=24, layers=2, heads=4, kv_heads=2, head_dim=6, mlp=32, norm_eps=1e-6, qkv_bias=True, tie_embeddings=True,
    lora=LoraConfig(rank=4, alpha=8.0, dropout=0.0), signal=SIGNAL,
)
BATCH, LENGTH = 2, 12


def noise(tree: dict, seed: int, size: float = 0.3) -> dict:
    """The tree plus seeded noise, so that zeros and ones of an initialisation are not what makes a test pass."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten([leaf + size * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)])


@functools.cache
def variables() -> dict:
    return {**noise(init_decoder(CONFIG, jax.random.key(0)), 1, 0.1), "lora": noise(init_lora(CONFIG, jax.random.key(2)), 3, 0.2)}


@functools.cache
def inputs() -> dict:
    """Two rows with holes: [before | visual .. | question .. | answer], row 1 with more holes; positions count valid slots."""
    keys = jax.random.split(jax.random.key(4), 4)
    valid = np.ones((BATCH, LENGTH), bool)
    valid[0, 5] = valid[1, 3:6] = valid[1, 8] = False
    reads = np.broadcast_to(np.arange(LENGTH) >= 6, valid.shape)
    visual = (np.arange(LENGTH) >= 1) & (np.arange(LENGTH) < 6) & valid
    return {
        "embeds": jax.random.normal(keys[0], (BATCH, LENGTH, CONFIG.width)),
        "positions": jnp.asarray(np.maximum(np.cumsum(valid, 1) - 1, 0), jnp.int32),
        "valid": jnp.asarray(valid),
        "reads": jnp.asarray(reads),
        "signal": jax.random.uniform(keys[1], (BATCH, LENGTH, 4)) * visual[..., None],
        "summary": jax.random.uniform(keys[2], (BATCH, SIGNAL.top)),
    }


@functools.partial(jax.jit, static_argnames=("config", "deterministic"))
def call(config, tree, embeds, positions, valid, reads=None, signal=None, summary=None, cache=None, start=None, rows=None, deterministic=True, rngs=None):
    """Decoder.__call__, jitted: these tests would otherwise spend their time compiling single operations."""
    return Decoder(config).apply(
        tree, embeds, positions, valid, reads=reads, signal=signal, summary=summary, cache=cache, start=start, rows=rows,
        deterministic=deterministic, rngs=rngs)


def run(tree: dict | None = None, config: DecoderConfig = CONFIG, **changes) -> np.ndarray:
    """Hidden states of the valid slots, the others zero."""
    hidden, _ = call(config, variables() if tree is None else tree, **{**inputs(), **changes})
    return np.where(inputs()["valid"][..., None], hidden, 0.0)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max())


# --------------------------------------------------------------------------------------------------------------------- transformers


def released(arrays: dict, config: DecoderConfig) -> dict:
    """The decoder's "params" from a state dict of transformers, as a conversion makes them."""
    weights = {key.removeprefix("weight/"): np.asarray(value, np.float32) for key, value in arrays.items() if key.startswith("weight/")}
    return load_state([LLAMA.plan(ArraySource(weights), ExperimentConfig(decoder=config))])["params"]["decoder"]


def logits_like(arrays: dict, config: DecoderConfig, **replace) -> np.ndarray:
    config = dataclasses.replace(config, **replace)
    decoder, tree = Decoder(config), {"params": jax.tree.map(jnp.asarray, released(arrays, config))}
    embeds = decoder.apply(tree, jnp.asarray(arrays["ids"]), method=Decoder.embed)
    hidden, _ = call(config, tree, embeds, jnp.asarray(arrays["positions"]), jnp.asarray(arrays["mask"]))
    return np.asarray(decoder.apply(tree, hidden, method=Decoder.logits))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_golden_ones_of_transformers(name, scan):
    arrays = dict(np.load(GOLDEN / f"decoder_{name}.npz"))
    found = logits_like(arrays, CONFIGS[name], scan=scan)
    assert relative_error(found[arrays["mask"]], arrays["logits"][arrays["mask"]]) < 1e-5


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", LIVE)
def test_logits_equal_transformers_live(name, seed):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    arrays = reference(name, seed)
    found = logits_like(arrays, LIVE[name])
    assert relative_error(found[arrays["mask"]], arrays["logits"][arrays["mask"]]) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_init_has_the_structure_of_a_released_model(name):
    arrays = dict(np.load(GOLDEN / f"decoder_{name}.npz"))
    loaded = released(arrays, CONFIGS[name])
    fresh = jax.eval_shape(lambda: init_decoder(CONFIGS[name], jax.random.key(0)))["params"]
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, loaded)


# ------------------------------------------------------------------------------------------------------------------ ways of running


@functools.cache
def value_and_grads(config: DecoderConfig) -> tuple[jax.Array, dict]:
    """A scalar of all valid hidden states, and its gradient in the collection "lora"."""
    valid = inputs()["valid"][..., None]
    loss = lambda lora: jnp.sum(jnp.where(valid, jnp.sin(call(config, {**variables(), "lora": lora}, **inputs())[0]), 0.0))
    return jax.jit(jax.value_and_grad(loss))(variables()["lora"])


@pytest.mark.parametrize("change", [{"scan": False}, {"remat": "dots"}, {"remat": "full"}, {"scan": False, "remat": "dots"}, {"scan": False, "remat": "full"}])
def test_scan_unroll_and_remat_agree(change):
    config = dataclasses.replace(CONFIG, **change)

    found, grads = value_and_grads(config)
    wanted, wanted_grads = value_and_grads(CONFIG)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), grads, wanted_grads)


@pytest.mark.parametrize("way", ["scanned", "unrolled", "cached"])
def test_asking_for_rows_gives_those_rows(way):
    rows = jnp.asarray([[11, 6, 9], [7, 7, 10]], jnp.int32)
    config = dataclasses.replace(CONFIG, scan=way == "scanned")
    more = {"cache": init_cache(CONFIG, BATCH, LENGTH), "start": 0} if way == "cached" else {}
    whole, filled = call(config, variables(), **inputs(), **more)
    hidden, cache = call(config, variables(), **inputs(), **more, rows=rows)
    np.testing.assert_allclose(hidden, np.take_along_axis(np.asarray(whole), np.asarray(rows)[..., None], 1), atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), cache, filled)


def test_activation_dtype_is_followed_and_logits_stay_float32():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    hidden, _ = call(config, variables(), **inputs())
    logits = Decoder(config).apply(variables(), hidden, method=Decoder.logits)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert relative_error(np.asarray(run(config=config), np.float32), run()) < 0.1


def test_params_are_plain_dicts_and_levels_differ():
    first, second = init_lora(CONFIG, jax.random.key(0)), init_lora(CONFIG, jax.random.key(1))
    for tree in (init_decoder(CONFIG, jax.random.key(0)), first):
        assert type(tree) is dict and all(type(node) is dict for node in tree.values())
    assert set(init_decoder(CONFIG, jax.random.key(0))) == {"params"}
    a, b = (tree["layers"]["mlp"]["up"]["a"] for tree in (first, second))
    assert not np.allclose(a, b) and not np.allclose(a[0], a[1]), "levels, and layers of one level, must start from different numbers"


# --------------------------------------------------------------------------------------------------------------------------- cache


def cached(pieces: list[int], start: str, length: int = LENGTH + 3, signal_once: bool = False, donate: bool = False) -> np.ndarray:
    """Hidden states of the inputs fed piece by piece through a cache."""
    i, cache, out, at = inputs(), init_cache(CONFIG, BATCH, length), [], 0
    # What an older, longer use of the cache has left behind must not be seen.
    cache["layers"] = jax.tree.map(lambda x: x + 7.0, cache["layers"])
    signal = jnp.pad(i["signal"], ((0, 0), (0, length - LENGTH), (0, 0)))

    def step(cache, embeds, positions, valid, reads, signal, at):
        return call(CONFIG, variables(), embeds, positions, valid, reads, signal, i["summary"], cache, at)

    step = jax.jit(step, donate_argnums=0) if donate else step
    for number, size in enumerate(pieces):
        part = {name: i[name][:, at : at + size] for name in ("embeds", "positions", "valid", "reads")}
        place = {"int": at, "scalar": jnp.int32(at), "row": jnp.full((BATCH,), at, jnp.int32)}[start]
        hidden, cache = step(cache, part["embeds"], part["positions"], part["valid"], part["reads"], signal if number == 0 or not signal_once else None, place)
        out.append(hidden)
        at += size
    return np.where(i["valid"][..., None], jnp.concatenate(out, 1), 0.0)


@pytest.mark.parametrize("start", ["int", "scalar", "row"])
def test_cached_equals_uncached(start):
    np.testing.assert_allclose(cached([6, 4, 1, 1], start), run(), atol=2e-5)


def test_cached_equals_uncached_when_jitted_and_donated():
    np.testing.assert_allclose(cached([10, 1, 1], "scalar", donate=True), run(), atol=2e-5)


def test_a_signal_given_once_stays_in_the_cache():
    np.testing.assert_allclose(cached([6, 4, 2], "int", signal_once=True), run(), atol=2e-5)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from([2, 4, 6, 8, 10]), max_size=4, unique=True))  # few sizes: each is a compilation
def test_cached_equals_uncached_however_it_is_cut(cuts):
    edges = [0, *sorted(cuts), LENGTH]
    np.testing.assert_allclose(cached(list(np.diff(edges)), "scalar"), run(), atol=2e-5)


def test_rows_may_start_at_different_slots():
    """Row 1 has a prefix two slots longer; each row then equals itself run alone."""
    i = inputs()
    everyone = jnp.ones((1, 8), bool)
    positions = jnp.arange(8)[None]
    lengths = (4, 6)
    cache = stack_caches([
        call(CONFIG, variables(), i["embeds"][row : row + 1, :n], positions[:, :n], everyone[:, :n], cache=init_cache(CONFIG, 1, 10), start=0)[1]
        for row, n in enumerate(lengths)])
    new = i["embeds"][:, 8:10]
    start = jnp.asarray(lengths, jnp.int32)
    hidden, _ = call(CONFIG, variables(), new, start[:, None] + jnp.arange(2), jnp.ones((2, 2), bool), cache=cache, start=start)
    for row, n in enumerate(lengths):
        whole = jnp.concatenate([i["embeds"][row : row + 1, :n], new[row : row + 1]], 1)
        alone, _ = call(CONFIG, variables(), whole, jnp.arange(n + 2)[None], jnp.ones((1, n + 2), bool))
        np.testing.assert_allclose(hidden[row], alone[0, n:], atol=2e-5)


@pytest.mark.parametrize("start", ["int", "row"])
def test_a_shared_prefix_is_computed_once_and_held_once(start):
    i = inputs()
    prefix = {name: i[name][:1, :6] for name in ("embeds", "positions", "valid")}
    cache = call(CONFIG, variables(), **prefix, cache=init_cache(CONFIG, 1, 6), start=0)[1]
    rows = fork(behind(cache, LENGTH - 6), BATCH)
    rest = {name: i[name][:, 6:] for name in ("embeds", "valid")}
    positions = jnp.maximum(jnp.cumsum(rest["valid"], 1) - 1, 0) + 5
    signal = i["signal"][::-1]
    hidden, _ = call(
        CONFIG, variables(), rest["embeds"], positions, rest["valid"], reads=i["reads"][:, 6:], signal=signal, summary=i["summary"], cache=rows,
        start={"int": 6, "row": jnp.full(BATCH, 6)}[start])
    both = {name: jnp.concatenate([jnp.broadcast_to(prefix[name], (BATCH, *prefix[name].shape[1:])), rest[name]], 1) for name in ("embeds", "valid")}
    whole, _ = call(
        CONFIG, variables(), both["embeds"], jnp.concatenate([jnp.broadcast_to(prefix["positions"], (BATCH, 6)), positions], 1), both["valid"],
        reads=i["reads"], signal=signal, summary=i["summary"])
    seen = np.asarray(rest["valid"])
    np.testing.assert_allclose(np.asarray(hidden)[seen], np.asarray(whole[:, 6:])[seen], atol=2e-5)
    layer = rows["layers"][0]
    assert len(layer["before"]["k"]) == 1 and len(layer["k"]) == len(rows["valid"]) == BATCH and layer["k"].shape[3] == LENGTH - 6


def test_a_cache_that_is_too_short_or_has_no_start_is_refused():
    i = inputs()
    with pytest.raises(ValueError, match="needs start"):
        Decoder(CONFIG).apply(variables(), i["embeds"], i["positions"], i["valid"], cache=init_cache(CONFIG, BATCH, LENGTH))
    with pytest.raises(ValueError, match="12 slots from 1 do not fit into a cache of 12"):
        Decoder(CONFIG).apply(variables(), i["embeds"], i["positions"], i["valid"], cache=init_cache(CONFIG, BATCH, LENGTH), start=1)


# ---------------------------------------------------------------------------------------------------------------------------- pads


@pytest.mark.parametrize("garbage", [np.nan, 1e4])
@pytest.mark.parametrize("scan", [True, False])
def test_what_lies_in_pads_does_not_matter(garbage, scan):
    i, config = inputs(), dataclasses.replace(CONFIG, scan=scan)
    hole = ~i["valid"][..., None]
    dirty = {name: jnp.where(hole, garbage, i[name]) for name in ("embeds", "signal")} | {"positions": jnp.where(hole[..., 0], 9999, i["positions"])}
    np.testing.assert_array_equal(run(config=config, **dirty), run(config=config))

    loss = lambda lora: jnp.sum(jnp.where(~hole, call(config, {**variables(), "lora": lora}, **{**i, **dirty})[0], 0.0) ** 2)
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(variables()["lora"])):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("garbage", [np.nan, 1e4])
def test_pads_of_a_cached_call_do_not_matter(garbage):
    i = inputs()
    feed = lambda embeds: call(CONFIG, variables(), embeds, i["positions"], i["valid"], cache=init_cache(CONFIG, BATCH, LENGTH), start=0)
    clean, dirty = feed(i["embeds"]), feed(jnp.where(i["valid"][..., None], i["embeds"], garbage))
    jax.tree.map(np.testing.assert_array_equal, clean[1], dirty[1])
    np.testing.assert_array_equal(clean[0], dirty[0])


def test_nothing_looks_to_the_right():
    changed = run(embeds=inputs()["embeds"].at[:, 9].add(3.0))
    np.testing.assert_array_equal(changed[:, :9], run()[:, :9])
    assert np.abs(changed[:, 9:] - run()[:, 9:]).max() > 1e-2


# ---------------------------------------------------------------------------------------------------------------------------- LoRA


def test_a_fresh_lora_changes_nothing():
    config = dataclasses.replace(CONFIG, signal=SignalConfig())
    fresh = {**variables(), "lora": init_lora(config, jax.random.key(5))}
    np.testing.assert_array_equal(run(fresh, config), run({"params": variables()["params"]}, config))


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_merged_equals_applied(rank_stabilised):
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=4, alpha=8.0, dropout=0.0, rank_stabilised=rank_stabilised))
    params, left = merge_lora(config, variables()["params"], variables()["lora"])
    assert jax.tree.structure(params) == jax.tree.structure(variables()["params"])
    assert {"/".join(path) for path in flax.traverse_util.flatten_dict(left)} == {"layers/signal_scale", "summary_projection/kernel"}
    np.testing.assert_allclose(run({"params": params, "lora": left}, config), run(config=config), atol=2e-5)
    assert np.abs(run({"params": params}, config) - run({"params": variables()["params"]}, config)).max() > 1e-2


def test_every_linear_layer_has_lora_and_every_pair_learns():
    grads = value_and_grads(CONFIG)[1]
    assert set(grads["layers"]["attention"]) == set("qkvo") and set(grads["layers"]["mlp"]) == {"gate", "up", "down"}
    for path, leaf in flax.traverse_util.flatten_dict(grads).items():
        assert np.abs(np.asarray(leaf)).max() > 1e-6, f"no gradient in {'/'.join(path)}"


def test_lora_dropout_acts_in_training_only():
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=4, alpha=8.0, dropout=0.5))

    def hidden(scan: bool, deterministic: bool, seed: int) -> jax.Array:
        return call(dataclasses.replace(config, scan=scan), variables(), **inputs(), deterministic=deterministic, rngs={"dropout": jax.random.key(seed)})[0]

    for scan in (True, False):
        assert np.array_equal(hidden(scan, True, 0), hidden(scan, True, 1))
        assert np.array_equal(hidden(scan, False, 0), hidden(scan, False, 0))
        assert np.abs(hidden(scan, False, 0) - hidden(scan, False, 1)).max() > 1e-2


# -------------------------------------------------------------------------------------------------------------------------- signal


def test_signal_off_creates_nothing_and_is_exact():
    config = dataclasses.replace(CONFIG, signal=SignalConfig())
    assert set(init_lora(config, jax.random.key(0))) == {"layers"} and set(init_lora(config, jax.random.key(0))["layers"]) == {"attention", "mlp"}
    assert init_lora(dataclasses.replace(config, lora=LoraConfig(rank=0)), jax.random.key(0)) == {}
    off = {"signal": None, "summary": None, "reads": None}
    wanted = run(None, config, **off)
    np.testing.assert_array_equal(run(**off), wanted)
    np.testing.assert_array_equal(run(None, config), wanted)
    silent = {"signal": jnp.zeros_like(inputs()["signal"]), "summary": jnp.zeros_like(inputs()["summary"])}
    np.testing.assert_array_equal(run(**silent), wanted)
    assert np.abs(run() - wanted).max() > 1e-2


def test_a_signal_that_starts_at_zero_starts_exactly_off():
    config = dataclasses.replace(CONFIG, signal=dataclasses.replace(SIGNAL, init=0.0))
    fresh = {**variables(), "lora": init_lora(config, jax.random.key(0))}
    np.testing.assert_array_equal(run(fresh, config), run(fresh, config, signal=None, summary=None))


def test_signal_reaches_reading_rows_alone():
    """The prefix shared by all questions must not know them."""
    other = run(signal=inputs()["signal"][::-1] * 2.0, summary=inputs()["summary"] + 1.0)
    np.testing.assert_array_equal(other[:, :6], run()[:, :6])
    assert np.abs(other[:, 6:] - run()[:, 6:]).max() > 1e-2


def test_signal_is_an_additive_bias_on_the_scores():
    """One layer, one head, keys and values known: the share of attention moves by exactly exp(bias)."""
    config = DecoderConfig(
        vocab=4, width=4, layers=1, heads=1, kv_heads=1, head_dim=4, mlp=4, lora=LoraConfig(rank=0),
        signal=SignalConfig(enabled=True, channels=("level",), init=1.0, top=1))
    tree = {**init_decoder(config, jax.random.key(0)), "lora": init_lora(config, jax.random.key(1))}
    attention = tree["params"]["layers"]["attention"]
    for name in "qk":
        attention[name]["kernel"] = jnp.zeros((1, 4, 4))  # every score equal: shares are the bias's alone
    for name in "vo":
        attention[name]["kernel"] = jnp.eye(4)[None]
    tree["params"]["layers"]["mlp"]["down"]["kernel"] = jnp.zeros((1, 4, 4))
    tree["params"]["layers"]["attention_norm"]["scale"] = jnp.full((1, 4), 0.5)  # norm of 2 e_j is e_j: one hot values
    tree["params"]["norm"]["scale"] = jnp.ones((4,))
    level = jnp.asarray([0.0, 1.0, 0.5, 0.0])
    hidden, _ = call(
        config, tree, 2.0 * jnp.eye(4)[None], jnp.arange(4)[None], jnp.ones((1, 4), bool),
        reads=jnp.asarray([[False, False, False, True]]), signal=level[None, :, None])
    share = np.exp(SIGNAL_GAIN * float(tree["lora"]["layers"]["signal_scale"][0, 0, 0]) * np.asarray(level))
    row = 2.0 * np.eye(4)[3] + share / share.sum()
    np.testing.assert_allclose(hidden[0, 3], row / np.sqrt(np.mean(row**2)), rtol=1e-4)
    flat = 2.0 * np.eye(4)[2] + np.asarray([1, 1, 1, 0]) / 3
    np.testing.assert_allclose(hidden[0, 2], flat / np.sqrt(np.mean(flat**2)), rtol=1e-4)


def test_starting_scales_are_init_and_break_the_symmetry_of_heads():
    scale = SIGNAL_GAIN * np.asarray(init_lora(CONFIG, jax.random.key(0))["layers"]["signal_scale"])
    assert scale.shape == (CONFIG.layers, CONFIG.heads, 4)
    np.testing.assert_allclose(scale[..., :2], 1.0)
    np.testing.assert_allclose(scale[..., 2], -scale[..., 3])
    assert len(np.unique(scale[0, :, 2])) == CONFIG.heads and np.abs(scale[..., 2:]).max() <= 1.0
