"""TensorBoard and wandb by stand-ins with the two calls of each that are used; a missing package is one line."""

import sys
import types

import pytest

from revision_jax.errors import UserError
from revision_jax.training.trackers import tensorboard, wandb

ROW = {"stage": "1a", "step": 3, "steps": 9, "loss": 0.5, "steps_per_s": 2.0}


def stand_in(monkeypatch, name, **members):
    module = types.ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def test_tensorboard(monkeypatch, tmp_path):
    seen = []

    class Writer:
        def __init__(self, folder):
            seen.append(folder)

        def add_scalar(self, name, value, step):
            seen.append((name, value, step))

        def flush(self):
            seen.append("flushed")

    stand_in(monkeypatch, "tensorboardX", SummaryWriter=Writer)
    tensorboard(tmp_path)(103, ROW)
    assert seen == [str(tmp_path), ("1a/loss", 0.5, 103), ("1a/steps_per_s", 2.0, 103), "flushed"]


def test_wandb_goes_on_with_the_run_of_the_work_directory(monkeypatch, tmp_path):
    seen = []
    run = types.SimpleNamespace(log=lambda values, step: seen.append((values, step)))
    stand_in(monkeypatch, "wandb", init=lambda **given: (seen.append(given), run)[1])
    wandb("films", tmp_path / "w7", {"seed": 1})(103, ROW)
    assert seen[0]["project"] == "films" and seen[0]["id"] == "w7" and seen[0]["resume"] == "allow" and seen[0]["config"] == {"seed": 1}
    assert seen[1] == ({"1a/loss": 0.5, "1a/steps_per_s": 2.0}, 103)


@pytest.mark.parametrize("made, told", [(lambda: tensorboard("x"), "--tensorboard: needs the package tensorboardX"), (lambda: wandb("p", "x", {}), "--wandb")])
def test_a_missing_package_is_named(monkeypatch, made, told):
    for name in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=told):
        made()
