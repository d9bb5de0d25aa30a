import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.tiny import get_config
from revision_jax.errors import UserError
from revision_jax.training.checkpoints import Checkpoints, differences, filled
from revision_jax.training.identity import identity
from tests.training.toy_task import toy_config


def changed(config, *path, **values):
    """A config with fields replaced somewhere inside, tuples by index."""
    if not path:
        return dataclasses.replace(config, **values)
    if isinstance(config, tuple):
        return tuple(changed(item, *path[1:], **values) if i == path[0] else item for i, item in enumerate(config))
    return dataclasses.replace(config, **{path[0]: changed(getattr(config, path[0]), *path[1:], **values)})


@pytest.mark.parametrize(
    "path, values, told",
    [
        (("data",), {"workers": 2, "prefetch": 9}, []),
        (("mesh",), {"tensor": 2}, []),
        (("grounding",), {"threshold": 0.9}, []),
        (("grounding", "levels", 2), {"beam": 9, "spans": 9}, []),
        (("train", "stages", 3), {"steps": 7}, []),  # not begun yet
        (("train", "stages", 0), {"steps": 7}, ["train.stages.{0}.steps: was {1}, is 7"]),
        (("decoder", "lora"), {"rank": 8}, ["decoder.lora.rank: was 32, is 8"]),
        (("grounding", "levels", 2), {"span_s": 240.0}, ["grounding.levels.dense.span_s: was 120.0, is 240.0"]),
        (("data",), {"train_videos": 3}, ["data.train_videos: was {2}, is 3"]),
    ],
)
def test_only_what_training_depends_on_must_agree(path, values, told):
    config = get_config()
    stages = config.train.stages
    told = [line.format(stages[0].name, stages[0].steps, config.data.train_videos) for line in told]
    assert differences(config.to_dict(), changed(config, *path, **values).to_dict(), {stage.name for stage in stages[:2]}) == told


def test_a_field_that_a_later_version_added_has_its_default():
    new = toy_config().to_dict()
    old, foreign = toy_config().to_dict(), toy_config().to_dict()
    del old["vision"]["rope_theta"], old["train"]["stages"][0]["accumulate"]
    assert differences(filled(old), new, {"a", "b"}) == []
    foreign["vision"]["colour"] = 1  # a field that is gone: the config is compared as it was stored
    assert differences(filled(foreign), new, set()) == ["vision.colour: was 1, is nothing"]


def tree():
    return {"params": {"w": jnp.arange(6.0).reshape(2, 3)}}, {"lora/x": {"a": jnp.ones(3, jnp.bfloat16)}}


def test_written_and_read_with_optimizer_state_and_types(tmp_path):
    trainable, frozen = tree()
    optimizer = optax.adamw(1e-3)
    opt_state = jax.tree.map(lambda x: x + 1, optimizer.init(trainable))
    with Checkpoints(tmp_path, toy_config()) as checkpoints:
        checkpoints.save("base", 0, trainable, opt_state, frozen)
        checkpoints.save("base", 5, jax.tree.map(lambda x: x * 2, trainable), opt_state)
    with Checkpoints(tmp_path, toy_config()) as checkpoints:
        assert checkpoints.latest() == ("base", 5)
        read = checkpoints.restore("base", 5, trainable, frozen, opt_state)
    np.testing.assert_array_equal(read.trainable["params"]["w"], 2 * trainable["params"]["w"])
    assert read.frozen["lora/x"]["a"].dtype == jnp.bfloat16
    assert jax.tree.structure(read.opt_state) == jax.tree.structure(opt_state)
    jax.tree.map(np.testing.assert_array_equal, read.opt_state, opt_state)


def test_first_and_last_are_kept(tmp_path):
    trainable, frozen = tree()
    with Checkpoints(tmp_path, toy_config(keep=2)) as checkpoints:
        checkpoints.save("base", 0, trainable, (), frozen)
        for step in range(1, 6):
            checkpoints.save("base", step, trainable, ())
        folder = checkpoints.directory("base")
    assert sorted(int(path.name) for path in folder.iterdir()) == [0, 4, 5]


def test_arrays_may_be_changed_as_soon_as_save_returns(tmp_path):
    trainable, frozen = tree()
    wanted = np.array(trainable["params"]["w"])
    with Checkpoints(tmp_path, toy_config()) as checkpoints:
        checkpoints.save("base", 0, trainable, (), frozen)
        jax.jit(lambda x: jax.tree.map(lambda y: y * 0 - 1, x), donate_argnums=0)(trainable)
    with Checkpoints(tmp_path, toy_config()) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore("base", 0, tree()[0], frozen, None).trainable["params"]["w"], wanted)


def test_tensors_that_do_not_match_are_all_listed(tmp_path):
    trainable, frozen = tree()
    with Checkpoints(tmp_path, toy_config()) as checkpoints:
        checkpoints.save("base", 0, trainable, (), frozen)
        other = {"params": {"w": jnp.zeros((3, 3)), "v": jnp.zeros(1)}}
        with pytest.raises(UserError, match=r"params/v stored as nothing, wanted \(1,\); params/w stored as \(2, 3\), wanted \(3, 3\)"):
            checkpoints.restore("base", 0, other, frozen, None)


def test_a_fresh_folder_holds_nothing_and_half_a_checkpoint_is_none(tmp_path):
    trainable, frozen = tree()
    with Checkpoints(tmp_path, toy_config()) as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save("base", 0, trainable, (), frozen)
        folder = checkpoints.directory("base")
    (folder / "5.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path, toy_config()) as checkpoints:
        assert checkpoints.latest() == ("base", 0)


@pytest.mark.parametrize("best_is, kept, best", [("lowest", [0, 2, 3, 6], 3), ("highest", [0, 1, 5, 6], 5)])
def test_the_best_are_kept_beside_the_last(tmp_path, best_is, kept, best):
    trainable, frozen = tree()
    config = changed(toy_config(keep=1, keep_best=2), "train", "stages", 0, best_is=best_is)
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save("base", 0, trainable, (), frozen)
        assert checkpoints.best("base") is None
        for step, loss in enumerate((0.7, 0.2, 0.1, 0.5, 0.9, 0.6), 1):
            checkpoints.save("base", step, trainable, (), best=loss)
        assert checkpoints.best("base") == best
        folder = checkpoints.directory("base")
    assert sorted(int(path.name) for path in folder.iterdir()) == kept


def test_weights_trained_on_another_base_are_refused(tmp_path):
    trainable, frozen = tree()
    for name, base in (("one", frozen), ("other", {"lora/x": {"a": frozen["lora/x"]["a"].at[1].set(2)}})):
        with Checkpoints(tmp_path / name, toy_config()) as checkpoints:
            checkpoints.save("base", 0, trainable, (), base)
            checkpoints.save("base", 5, trainable, ())
            folder = checkpoints.directory("base")
    shutil.rmtree(folder / "5")
    shutil.copytree(tmp_path / "one" / "checkpoints" / folder.name / "5", folder / "5")
    with Checkpoints(tmp_path / "other", toy_config()) as checkpoints:
        checkpoints.restore("base", 0, trainable, frozen, None)
        with pytest.raises(UserError, match=r"00-base/5: was trained on frozen weights [0-9a-f]{24}, but .*00-base/0 holds [0-9a-f]{24}; put its own back"):
            checkpoints.restore("base", 5, trainable, frozen, None)


def test_an_identity_is_of_every_bit_name_shape_and_place():
    weights = {"params": {"w": jnp.arange(6.0).reshape(2, 3), "v": jnp.ones(4, jnp.bfloat16), "n": jnp.int32(3)}}
    change = lambda name, value: {"params": {**weights["params"], name: value}}
    w = weights["params"]["w"]
    others = [
        change("w", w.at[1, 2].add(1e-6)), change("w", w[::-1]), change("w", w.T), change("w", w.reshape(6)), change("w", w.astype(jnp.bfloat16)),
        change("v", jnp.ones(5, jnp.bfloat16)), change("n", jnp.int32(4)), change("u", jnp.zeros(1)), {"lora/x": weights["params"]},
    ]  # fmt: skip
    assert len({identity(tree) for tree in (weights, *others)}) == len(others) + 1
    assert identity(weights) == identity(jax.tree.map(jnp.copy, weights))
