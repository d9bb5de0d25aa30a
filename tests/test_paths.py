import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.paths import flatten, heads, slices, under, unflatten

keys = st.text(alphabet="abcdefgh_0", min_size=1, max_size=5)
nested = st.recursive(st.integers(), lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3), max_leaves=6)
trees = st.dictionaries(keys, nested, min_size=1, max_size=3)


@given(params=trees, low=trees)
def test_unflatten_undoes_flatten(params, low):
    state = {"params": params, "lora/dense": low, "adapter/dense": low}
    assert unflatten(flatten(state)) == state


def test_names_and_order():
    state = {"params": {"b": 2, "a": {"x": 1}}, "lora/dense": {"q": {"a": np.zeros(2)}}, "empty": {}}
    assert list(flatten(state)) == ["lora/dense/q/a", "params/a/x", "params/b"]
    assert heads(flatten(state)) == ["lora/dense", "params/a", "params/b"]


def test_under_compares_whole_keys():
    assert under("lora/dense/q/a", "lora/dense") and under("lora/dense", "lora/dense") and under("lora/dense/q", "lora")
    assert not under("lora/dense2/q", "lora/dense") and not under("lora", "lora/dense")


def test_leaves_come_apart_by_rows():
    assert slices("a/layers/q/b", (2, 5), "a/layers") == [("a/layers/0/q/b", 0), ("a/layers/1/q/b", 1)]
    assert slices("a/layers2/q", (2, 5), "a/layers") == [("a/layers2/q", None)] == slices("a/layers2/q", (2, 5), "")
    assert slices("a/scale", (), "a/layers") == [("a/scale", None)]
