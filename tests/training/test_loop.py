import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from revision_jax import paths
from revision_jax.config import ConfigError, MeshConfig
from revision_jax.errors import UserError
from revision_jax.sharding.chips import CHIPS, chip_of
from revision_jax.training import loop
from revision_jax.training.checkpoints import Checkpoints
from revision_jax.training.loop import run
from revision_jax.training.metrics import TIMES, NotFinite, read_rows
from revision_jax.training.profiling import Profile, chosen_steps
from revision_jax.training.state import split
from tests.training.toy_task import toy_config, toy_loss, toy_state, toy_task

ONE = jax.devices()[:1]


def leaves(state):
    return {name: np.array(leaf) for name, leaf in paths.flatten(state).items()}


def equal(first, second):
    return set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)


def timeless(workdir):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_rows(workdir / "metrics.jsonl")]


def small(**train):
    config = toy_config(**train)
    base, fine = config.train.stages
    stages = (dataclasses.replace(base, steps=6), dataclasses.replace(fine, steps=4))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, stages=stages, checkpoint_every=2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted: (config, workdir, result, what the hooks saw)."""
    workdir, seen = tmp_path_factory.mktemp("whole"), {"before": {}, "end": {}}

    def note(when):
        return lambda stage, state: seen[when].update({stage.name: leaves(state)})

    result = run(small(), workdir, toy_task(small(), before_stage=note("before"), on_stage_end=(note("end"),)), devices=ONE)
    return small(), workdir, result, seen


def test_stages_follow_each_other_and_frozen_weights_stay_bit_identical(whole):
    _, _, result, seen = whole
    start = leaves(jax.jit(toy_state)())
    assert equal(seen["before"]["base"], start)
    for name, leaf in seen["end"]["base"].items():
        assert np.array_equal(leaf, start[name]) == (not name.startswith("params/")), name
    began, ended = seen["before"]["fine"], seen["end"]["fine"]
    for part in ("a", "b"):
        assert np.array_equal(began[f"lora/fine/{part}"], start[f"lora/coarse/{part}"])  # the stage's copy
    for name, leaf in ended.items():
        assert np.array_equal(leaf, began[name]) == (not name.startswith("lora/fine/")), name
    assert equal(leaves(result.state), ended) and result[1:] == ("fine", 4, 0)


def test_metrics_have_a_row_for_every_step_and_the_examples_of_that_step(whole):
    _, workdir, _, _ = whole
    rows = read_rows(workdir / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [("base", step) for step in range(1, 7)] + [("fine", step) for step in range(1, 5)]
    assert [row["index_sum"] for row in rows[:6]] == [sum(range(8 * step, 8 * step + 8)) for step in range(6)]


def test_running_again_changes_nothing_and_calls_no_hook(whole):
    config, workdir, result, _ = whole

    def fail(stage, state):
        raise AssertionError

    again = run(config, workdir, toy_task(config, before_stage=fail, on_stage_end=(fail,)), devices=ONE)
    assert equal(leaves(again.state), leaves(result.state)) and again.step == 4
    assert len(read_rows(workdir / "metrics.jsonl")) == 10


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [("base", 5), ("fine", 3)])
def test_a_run_that_died_goes_on_with_the_same_batches_to_the_same_weights(whole, tmp_path, at):
    config, workdir, result, _ = whole

    class Dying:
        def __init__(self, examples, stage):
            self.examples, self.last = examples, at[1] * stage.batch if stage.name == at[0] else 10**9

        def example(self, index):
            if index >= self.last:
                raise Stop
            return self.examples.example(index)

    task = toy_task(config)
    with pytest.raises(Stop):
        run(config, tmp_path, task._replace(make_examples=lambda stage: Dying(task.make_examples(stage), stage)), devices=ONE)
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.latest() == (at[0], at[1] - 1)  # a checkpoint every 2 steps
    finished = run(config, tmp_path, task, devices=ONE)
    assert equal(leaves(finished.state), leaves(result.state))
    assert timeless(tmp_path) == timeless(workdir)


def test_a_stop_signal_saves_and_the_next_run_goes_on(whole, tmp_path):
    config, _, result, _ = whole
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoint_every=100))

    class Signalling:
        def __init__(self, examples):
            self.examples = examples

        def example(self, index):
            if index == 3 * 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return self.examples.example(index)

    task = toy_task(config)
    stopped = run(config, tmp_path, task._replace(make_examples=lambda stage: Signalling(task.make_examples(stage))), devices=ONE)
    assert stopped.stopped == signal.SIGTERM and stopped.stage == "base" and 1 <= stopped.step < 6
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # given back
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.latest() == ("base", stopped.step)
    assert equal(leaves(run(config, tmp_path, task, devices=ONE).state), leaves(result.state))


def test_stages_can_be_chosen_one_run_at_a_time(whole, tmp_path):
    config, _, result, _ = whole
    assert run(config, tmp_path, toy_task(config), stages=["base"], devices=ONE).stage == "base"
    assert equal(leaves(run(config, tmp_path, toy_task(config), stages=["fine"], devices=ONE).state), leaves(result.state))
    with pytest.raises(UserError, match="is at stage fine already, after base"):
        run(config, tmp_path, toy_task(config), stages=["base"], devices=ONE)
    with pytest.raises(ConfigError, match=r"train\.stages: no stage medium; there are base, fine"):
        run(config, tmp_path, toy_task(config), stages=["medium"], devices=ONE)


def test_a_callback_that_died_is_called_again(tmp_path):
    config = dataclasses.replace(small(), train=dataclasses.replace(small().train, stages=small().train.stages[:1]))
    calls = []

    def flaky(stage, state):
        calls.append(stage.name)
        if len(calls) == 1:
            raise Stop

    with pytest.raises(Stop):
        run(config, tmp_path, toy_task(config, on_stage_end=(flaky,)), devices=ONE)
    for _ in range(2):
        run(config, tmp_path, toy_task(config, on_stage_end=(flaky,)), devices=ONE)
    assert calls == ["base", "base"]


def test_a_loss_that_is_no_number_names_its_step_and_is_never_saved(tmp_path):
    config = small()

    def bad_loss(stage):
        def loss(state, batch, key):
            value, metrics = toy_loss(stage)(state, batch, key)
            return jax.numpy.where(metrics["index_sum"] == sum(range(24, 32)), jax.numpy.nan, value), metrics

        return loss

    with pytest.raises(NotFinite, match=r"stage base, step 4: loss is nan \(examples 24 to 31 of the stage\)"):
        run(config, tmp_path, toy_task(config)._replace(make_loss=bad_loss), devices=ONE)
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.latest() == ("base", 2)


def test_another_config_is_refused_with_the_fields_that_differ(whole):
    config, workdir, _, _ = whole
    free = dataclasses.replace(config, name="renamed", mesh=MeshConfig(data=1), train=dataclasses.replace(config.train, keep=5, log_every=7))
    run(free, workdir, toy_task(free), devices=ONE)
    base, fine = config.train.stages
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=4, stages=(dataclasses.replace(base, learning_rate=0.5), fine)))
    with pytest.raises(UserError, match=r"seed: was 3, is 4; train\.stages\.base\.learning_rate: was 0\.01, is 0\.5"):
        run(changed, workdir, toy_task(changed), devices=ONE)
    with pytest.raises(UserError, match="01-fine: not a stage of this config"):
        lone = dataclasses.replace(config, train=dataclasses.replace(config.train, stages=(base,)))
        run(lone, workdir, toy_task(lone), devices=ONE)


def test_what_cannot_run_is_said_before_anything_is_written(tmp_path):
    config = small()
    base, fine = config.train.stages
    wrong = dataclasses.replace(config, train=dataclasses.replace(config.train, stages=(base, dataclasses.replace(fine, train=("lora/none",)))))
    with pytest.raises(ConfigError, match=r"stages\.fine\.train: nothing of the model lies under 'lora/none'"):
        run(wrong, tmp_path / "w", toy_task(wrong), devices=ONE)
    with pytest.raises(ConfigError, match="mesh"):
        run(dataclasses.replace(config, mesh=MeshConfig(data=3)), tmp_path / "w", toy_task(config), devices=ONE)
    assert not (tmp_path / "w").exists()


def test_a_step_that_is_no_number_is_skipped_where_the_config_says_so(tmp_path):
    config = small(not_finite="skip")
    base, fine = config.train.stages
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, stages=(dataclasses.replace(base, steps=5), fine)))
    saved = {}

    def bad_loss(stage):
        def loss(state, batch, key):
            value, metrics = toy_loss(stage)(state, batch, key)
            return jax.numpy.where(metrics["index_sum"] == sum(range(32, 40)), jax.numpy.inf, value), metrics

        return loss

    end = lambda stage, state: saved.update(leaves(state))
    run(config, tmp_path, toy_task(config, on_stage_end=(end,))._replace(make_loss=bad_loss), stages=["base"], devices=ONE)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [0, 0, 0, 0, 1] and "loss" not in rows[-1]
    with Checkpoints(tmp_path, config) as checkpoints:
        trainable, frozen = split(jax.jit(toy_state)(), base.train)
        before = checkpoints.restore("base", 4, trainable, frozen, None)
    assert equal({name: leaf for name, leaf in saved.items() if name.startswith("params/")}, leaves(before.trainable))


def test_best_checkpoints_go_by_the_mean_since_the_one_before(tmp_path):
    config = small(keep=1, keep_best=1)
    run(config, tmp_path, toy_task(config), stages=["base"], devices=ONE)
    rows = [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl")]
    means = {step: (rows[step - 2] + rows[step - 1]) / 2 for step in (2, 4, 6)}
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.best("base") == min(means, key=means.get)


def test_stages_tell_where_they_begin_and_end_and_chosen_steps_are_traced(tmp_path, capsys):
    config = small()
    run(config, tmp_path / "w", toy_task(config), stages=["base"], devices=ONE, profile=Profile(chosen_steps("2-3"), tmp_path / "profile"))
    told = capsys.readouterr().err
    assert "stage base begins at step 0: 6 steps of 8 rows" in told and "stage base ended at step 6" in told
    assert list((tmp_path / "profile" / "base").rglob("*.xplane.pb"))
    for wrong in ("0", "3-2", "x"):
        with pytest.raises(UserError, match=f"--profile {wrong}: wants"):
            chosen_steps(wrong)


def test_the_share_of_the_peak_is_told_where_the_chip_is_known(tmp_path, monkeypatch):
    config, asked = small(), []

    def flops(stage, trainable, frozen, batch):
        asked.append((stage.name, batch["x"].shape))
        return 10**6

    task = toy_task(config)._replace(flops=flops)
    run(config, tmp_path / "unknown", task, stages=["base"], devices=ONE)
    assert asked == [] and all("mfu" not in row for row in read_rows(tmp_path / "unknown" / "metrics.jsonl"))
    monkeypatch.setattr(loop, "chip_of", lambda kind: CHIPS["v5e"])
    run(config, tmp_path / "known", task, stages=["base"], devices=ONE)
    assert asked == [("base", (8, 16))]  # once for each shape of a batch
    for row in read_rows(tmp_path / "known" / "metrics.jsonl"):
        assert row["mfu"] == pytest.approx(10**6 * row["steps_per_s"] / 197e12)


@pytest.mark.parametrize(
    "kind, name",
    [
        ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("cpu", None),
    ],
)  # fmt: skip
def test_chips_by_the_names_that_jax_has_for_them(kind, name):
    assert chip_of(kind) is CHIPS.get(name)


def test_nothing_replaces_import_while_a_checkpoint_is_written():
    """Grain's import puts another `builtins.__import__` in place for a moment, for all threads: what Orbax's thread imported then was broken."""
    code = "import sys, revision_jax.training.loop\nassert 'grain' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
