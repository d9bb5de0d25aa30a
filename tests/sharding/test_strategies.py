"""Strategies: meshes of any number of devices, names, those that config files add, and where every preset's weights lie."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from revision_jax.config import ConfigError, MeshConfig
from revision_jax.sharding import strategies as named
from revision_jax.sharding.activations import constrain, on_mesh
from revision_jax.sharding.mesh import AXES, make_mesh
from revision_jax.sharding.rules import Rules, fitted
from revision_jax.sharding.strategies import PRESETS, Strategy, add_strategy, inner, rules_named, strategies, strategy_named
from tests.sharding.make_golden import FOLDER, golden
from tests.sharding.make_golden import PRESETS as CONFIGS
from tests.sharding.test_rules import mesh_of


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setattr(named, "_added", {})


@pytest.mark.parametrize("devices", [1, 2, 4, 6, 8, 12, 64, 128, 256])
def test_every_preset_has_a_mesh_of_any_number_of_devices(devices):
    for name, strategy in PRESETS.items():
        mesh = strategy.mesh(devices)
        assert math.prod(getattr(mesh, axis) for axis in AXES) == devices and mesh.rules == name


def test_the_meshes_of_a_slice_of_64():
    sizes = {name: [getattr(strategy.mesh(64), axis) for axis in AXES] for name, strategy in PRESETS.items()}
    assert sizes == {
        "dp": [64, 1, 1, 1], "fsdp": [1, 64, 1, 1], "tensor": [16, 1, 1, 4], "fsdp_tensor": [1, 16, 1, 4], "fsdp_context": [1, 16, 4, 1],
        "fsdp_context_tensor": [1, 8, 2, 4],
    }  # fmt: skip


def test_inner_axes_are_the_smaller_ones():
    assert [inner(devices, 4) for devices in (1, 2, 4, 8, 16, 64, 12, 9)] == [1, 1, 2, 2, 4, 4, 2, 1]


def test_what_presets_do_to_a_weight():
    spec = lambda name: rules_named(name).spec("layers", "embed", "mlp")
    assert spec("dp") == P(None, None, None) and spec("tensor") == P(None, None, "tensor")
    assert spec("fsdp") == spec("fsdp_tensor") == P(None, "fsdp", "tensor")
    assert spec("fsdp_context") == P(None, ("fsdp", "context"), "tensor")


def test_unknown_names_raise():
    with pytest.raises(ConfigError, match=r"strategy: 'zero' is not one of dp, fsdp"):
        strategy_named("zero")
    with pytest.raises(ConfigError, match=r"mesh\.rules: 'zero' is not one of default, fit, dp"):
        rules_named("zero")
    with pytest.raises(ConfigError, match=r"the rule for 'embed' names the mesh axis 'fdsp'; known are data, fsdp, context, tensor"):
        Rules(embed="fdsp")


def test_a_config_file_adds_one_in_a_line(added):
    rules = Rules(embed=("data", "fsdp"))
    add_strategy("wide", rules, lambda devices: {"data": devices // 8, "fsdp": 8})
    assert strategy_named("wide").mesh(64) == MeshConfig(data=8, fsdp=8, rules="wide") and rules_named("wide") == rules
    assert list(strategies()) == [*PRESETS, "wide"]
    add_strategy("wide", rules, lambda devices: {"data": devices // 4, "fsdp": 4})  # the same rules for another mesh: a file that is read again
    for name in ("wide", "dp", "default"):
        with pytest.raises(ConfigError, match=f"strategy {name}: is known already, with other rules"):
            add_strategy(name, Rules(embed="data"), lambda devices: {"data": devices})


def test_a_strategy_that_does_not_suit_the_devices_raises():
    with pytest.raises(ConfigError, match="strategy odd: data=2, fsdp=1, context=1, tensor=3 needs 6 devices, there are 8"):
        Strategy("odd", Rules(), lambda devices: {"data": 2, "tensor": 3}).mesh(8)
    with pytest.raises(ConfigError, match="strategy odd: unknown mesh axis expert"):
        Strategy("odd", Rules(), lambda devices: {"expert": devices}).mesh(8)


def test_messages_name_the_weight():
    with pytest.raises(ConfigError, match=r"params/w: 'heads' and 'mlp'.*'tensor'"):
        fitted("params/w", (8, 8), ("heads", "mlp"), mesh_of(tensor=2), Rules())
    with pytest.raises(ConfigError, match=r"params/w: axis 'embed' of 6 .* 4 devices of mesh axis fsdp"):
        fitted("params/w", (6, 8), ("embed", "mlp"), mesh_of(fsdp=4), Rules())


def test_activations_are_pinned_on_a_mesh_and_left_alone_without_one():
    x = jnp.zeros((4, 6, 8))
    assert constrain(x, "no such rules", "batch", "position", "hidden") is x
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def pinned(x):
        with on_mesh(mesh):
            return constrain(x, "fsdp_context", "batch", "position", "hidden")

    equations = [equation for equation in jax.make_jaxpr(pinned)(x).eqns if equation.primitive.name == "sharding_constraint"]
    assert len(equations) == 1 and equations[0].params["sharding"].spec == P(("data", "fsdp"), "context", None)
    with pytest.raises(ConfigError, match="no rule"), on_mesh(mesh):
        constrain(x, "fsdp", "batch", "positions", "hidden")


@pytest.mark.parametrize("preset", CONFIGS)
def test_weights_lie_where_the_golden_files_say(preset):
    wanted = (FOLDER / f"{preset}.json").read_text(encoding="utf-8")
    assert golden(preset) == wanted, "if that is meant: python -m tests.sharding.make_golden"
