"""Rules, transforms and plans: every tensor has its place, and everything that does not fit is told at once."""

import ml_dtypes
import numpy as np
import pytest
from jax import ShapeDtypeStruct

from revision_jax.convert.plan import Ignore, Rule, export_plan, make_plan
from revision_jax.convert.source import ArraySource
from revision_jax.convert.transforms import PATCH_KERNEL, RESHAPE, ROWS, SQUEEZE, TRANSPOSE
from revision_jax.errors import UserError

RULES = (
    Rule("embed.weight", "params/embed"),
    Rule("head.weight", "params/embed", optional=True),
    Rule("layers.{i}.up.weight", "params/up/kernel[{i}]", TRANSPOSE),
    *(Rule("attn.{j}.in_proj.weight", f"params/attn_{{j}}/{x}/kernel", ROWS(k, 3, TRANSPOSE)) for k, x in enumerate("qkv")),
    Rule("patch.weight", "params/patch/kernel", PATCH_KERNEL),
    Rule("token", "params/token", SQUEEZE(0, 1)),
    Rule("extra", "params/extra", RESHAPE((6,), (2, 3)), optional=True),
)
IGNORES = (Ignore("layers.*.inv_freq", "computed"),)
TARGET = {
    name: ShapeDtypeStruct(shape, np.float32)
    for name, shape in {
        "params/embed": (7, 4), "params/up/kernel": (2, 4, 6), "params/attn_0/q/kernel": (4, 4), "params/attn_0/k/kernel": (4, 4),
        "params/attn_0/v/kernel": (4, 4), "params/patch/kernel": (12, 5), "params/token": (4,), "params/extra": (2, 3),
    }.items()
}  # fmt: skip


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    shapes = {
        "embed.weight": (7, 4), "layers.0.up.weight": (6, 4), "layers.0.inv_freq": (3,), "layers.1.up.weight": (6, 4), "attn.0.in_proj.weight": (12, 4),
        "patch.weight": (5, 3, 2, 2), "token": (1, 1, 4), "extra": (6,),
    }  # fmt: skip
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def state_of(plan):
    state = {path: np.zeros(leaf.shape, np.float32) for path, leaf in plan.target.items()}
    for path, index, array in plan.apply():
        state[path][... if index is None else index] = array
    return state


def complaint(arrays, rules=RULES, target=TARGET, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        make_plan(rules, IGNORES, ArraySource(arrays), target, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_tensor_finds_its_place(arrays):
    state = state_of(make_plan(RULES, IGNORES, ArraySource(arrays), TARGET))
    np.testing.assert_array_equal(state["params/embed"], arrays["embed.weight"])
    np.testing.assert_array_equal(state["params/up/kernel"], np.stack([arrays["layers.0.up.weight"].T, arrays["layers.1.up.weight"].T]))
    np.testing.assert_array_equal(state["params/attn_0/k/kernel"], arrays["attn.0.in_proj.weight"][4:8].T)
    np.testing.assert_array_equal(state["params/patch/kernel"][:, 3], arrays["patch.weight"][3].reshape(-1))
    np.testing.assert_array_equal(state["params/token"], arrays["token"][0, 0])
    np.testing.assert_array_equal(state["params/extra"], arrays["extra"].reshape(2, 3))


def test_and_its_way_back(arrays):
    state = state_of(make_plan(RULES, IGNORES, ArraySource(arrays), TARGET))
    read = lambda path, index: state[path] if index is None else state[path][index]
    back = dict(export_plan(RULES, TARGET).backward(read))
    assert set(back) == set(arrays) - {"layers.0.inv_freq"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, arrays[name])
    again = dict(make_plan(RULES, IGNORES, ArraySource(arrays), TARGET).backward(read))
    assert set(again) == set(back)


def test_what_no_rule_fills_cannot_be_exported():
    with pytest.raises(UserError, match="no place for params/new"):
        export_plan(RULES, TARGET | {"params/new": ShapeDtypeStruct((1,), np.float32)})


def test_views_only(arrays):
    """A memory-mapped tensor must not be copied on its way."""
    plan = make_plan(RULES, IGNORES, ArraySource(arrays), TARGET)
    for (path, _, array), step in zip(plan.apply(), plan.steps, strict=True):
        assert np.shares_memory(array, arrays[step.source]), path


def test_optional_tensors(arrays):
    del arrays["extra"]
    assert make_plan(RULES, IGNORES, ArraySource(arrays), TARGET).unfilled == ("params/extra",)


def test_leaves_that_are_zero(arrays):
    target = TARGET | {"params/zero": ShapeDtypeStruct((2, 5), np.float32)}
    plan = make_plan((*RULES, Rule(None, "params/zero")), IGNORES, ArraySource(arrays), target)
    given = {path: array for path, _, array in plan.apply()}["params/zero"]
    assert given.shape == (2, 5) and given.dtype == np.float32 and not given.any() and given.strides == (0, 0)
    back = export_plan((*RULES, Rule(None, "params/zero")), target).backward(lambda path, index: np.zeros(target[path].shape)[... if index is None else index])
    assert set(dict(back)) == set(arrays) - {"layers.0.inv_freq"}


def test_everything_is_told_at_once(arrays):
    del arrays["layers.1.up.weight"], arrays["token"]
    arrays |= {"layers.2.up.weight": arrays["layers.0.up.weight"], "stranger": np.zeros(3, np.float32), "patch.weight": np.zeros((5, 3, 2, 4), np.float32),
               "attn.0.in_proj.weight": np.zeros((13, 4), np.float32), "embed.weight": np.zeros((8, 4), np.float32), "extra": np.zeros(6, np.int8)}  # fmt: skip
    told = complaint(arrays, target=TARGET | {"params/new": ShapeDtypeStruct((1,), np.float32)})
    for part in (
        "does not know: stranger", "does not have: layers.2.up.weight (for params/up/kernel[2])", "missing: layers.1.up.weight, token, params/new (no rule",
        "patch.weight has shape (5, 3, 2, 4)", "13 rows do not divide by 3",
        "embed.weight has shape (8, 4), the config wants params/embed (7, 4)", "extra is int8",
    ):  # fmt: skip
        assert part in told, (part, told)


def test_long_lists_are_cut(arrays):
    told = complaint(arrays | {f"stranger.{i}": np.zeros(1, np.float32) for i in range(40)})
    assert "stranger.3" in told and "and 28 more" in told and "stranger.20" not in told


def test_tied_weights_given_twice(arrays):
    arrays["head.weight"] = arrays["embed.weight"].copy()
    plan = make_plan(RULES, IGNORES, ArraySource(arrays), TARGET)
    assert [path for path, _, _ in plan.apply()].count("params/embed") == 1
    arrays["head.weight"][6, 3] += 1e-3
    assert "given twice and different: head.weight is not equal to embed.weight" in complaint(arrays)


def test_mixed_dtypes_need_a_word(arrays):
    arrays["token"] = arrays["token"].astype(ml_dtypes.bfloat16)
    told = complaint(arrays)
    assert "6 of float32" in told and "1 of bfloat16 (such as token)" in told and "--dtype" in told
    make_plan(RULES, IGNORES, ArraySource(arrays), TARGET, dtype="bfloat16")
