import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from revision_jax.config import ConfigError, MeshConfig
from revision_jax.sharding.mesh import AXES, across_slices, device_grid, local_rows, make_mesh, mesh_shape
from revision_jax.sharding.rules import Rules, batch_sharding, check_batch, fitted
from revision_jax.sharding.strategies import PRESETS, rules_named


def mesh_of(data=1, fsdp=1, context=1, tensor=1):
    """A mesh whose sizes are as asked, over one real device repeated: enough for everything that only counts."""
    grid = np.full((data, fsdp, context, tensor), jax.devices()[0])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 4)


def test_spec_of_a_stacked_weight_and_of_an_activation():
    rules = Rules()
    assert rules.spec("layers", "embed", "mlp") == P(None, "fsdp", "tensor")
    assert rules.spec("batch", "position", "hidden") == P(("data", "fsdp"), "context", None)
    assert rules.spec(None, "vocab") == P(None, "tensor")
    assert rules.spec() == P()


def test_unknown_names_raise():
    with pytest.raises(ConfigError, match=r"'embedd'.*known are"):
        Rules().spec("embedd")
    with pytest.raises(ConfigError, match="'indivisible'"):
        Rules().spec("indivisible")
    with pytest.raises(ConfigError, match=r"mesh\.rules: 'zero' is not one of default"):
        rules_named("zero")


def test_two_dimensions_on_one_mesh_axis_raise():
    with pytest.raises(ConfigError, match=r"'heads' and 'mlp'.*'tensor'"):
        Rules().spec("heads", "mlp")
    with pytest.raises(ConfigError, match="'fsdp'"):
        Rules().spec("batch", "embed")
    assert Rules(mlp=None).spec("heads", "mlp") == P("tensor", None)


def test_rules_are_a_static_argument():
    assert hash(Rules()) == hash(dataclasses.replace(Rules())) and Rules() != Rules(embed=None)


def test_data_parallelism_leaves_every_weight_whole():
    rules = PRESETS["dp"].rules
    assert rules.spec("layers", "embed", "heads") == P(None, None, None)
    assert rules.spec("batch") == P(("data", "fsdp"))


def test_a_dimension_that_does_not_divide_raises_or_is_replicated_where_the_rules_say_so():
    mesh = mesh_of(fsdp=4, tensor=2)
    assert fitted("params/w", (8, 6), ("embed", "mlp"), mesh, Rules()) == P("fsdp", "tensor")
    with pytest.raises(ConfigError, match=r"params/w: axis 'embed' of 6 .* 4 devices of mesh axis fsdp"):
        fitted("params/w", (6, 6), ("embed", "mlp"), mesh, Rules())
    assert fitted("params/w", (6, 6), ("embed", "mlp"), mesh, rules_named("fit")) == P(None, "tensor")
    with pytest.raises(ConfigError, match="shape"):
        fitted("params/w", (6, 6), ("embed",), mesh, Rules())


def test_a_batch_that_does_not_divide_by_the_mesh_raises():
    check_batch("stages.1a.batch", 16, mesh_of(data=2, fsdp=4), Rules())
    with pytest.raises(ConfigError, match=r"stages\.1a\.batch: a batch of 30 does not divide by the 8 devices .*multiple of 8"):
        check_batch("stages.1a.batch", 30, mesh_of(data=2, fsdp=4), Rules())


def test_mesh_sizes():
    assert mesh_shape(MeshConfig(), 8) == (8, 1, 1, 1)
    assert mesh_shape(MeshConfig(data=2, fsdp=-1, tensor=2), 8) == (2, 2, 1, 2)
    assert mesh_shape(MeshConfig(data=1, fsdp=4, context=2, tensor=2), 16) == (1, 4, 2, 2)
    with pytest.raises(ConfigError, match="does not divide 8 devices"):
        mesh_shape(MeshConfig(tensor=3), 8)
    with pytest.raises(ConfigError, match="needs 4 devices, there are 8"):
        mesh_shape(MeshConfig(data=4), 8)
    with pytest.raises(ConfigError, match="at most one axis may be -1"):
        MeshConfig(fsdp=-1)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a layout asks of a device of several TPU slices, which are not here."""

    id: int
    slice_index: int
    platform: str = "other"
    device_kind: str = "chip"
    process_index: int = 0


@pytest.mark.parametrize(
    ("shape", "slices", "across"),
    [
        ((2, 4, 1, 1), 2, (2, 1, 1, 1)),
        ((4, 1, 2, 2), 2, (2, 1, 1, 1)),
        ((1, 8, 1, 2), 4, (1, 4, 1, 1)),
        ((2, 8, 1, 1), 8, (2, 4, 1, 1)),
        ((6, 1, 1, 2), 3, (3, 1, 1, 1)),
    ],
)
def test_only_data_and_then_fsdp_go_across_slices(shape, slices, across):
    count = math.prod(shape)
    chips = [Chip(number, number * slices // count) for number in range(count)]
    grid = device_grid(shape, chips[::-1])
    assert grid.shape == shape and {chip.id for chip in grid.flat} == set(range(count))
    assert across_slices(shape, slices) == (across, tuple(size // out for size, out in zip(shape, across, strict=True)))
    number = np.vectorize(lambda chip: chip.slice_index)(grid)
    assert (number == number[:, :, :1, :1]).all(), "context and tensor stay inside a slice"
    inside = number.reshape(across[0], shape[0] // across[0], across[1], shape[1] // across[1], -1)
    assert (inside == inside[:, :1, :, :1, :1]).all() and len(np.unique(inside[:, 0, :, 0, 0])) == slices


def test_slices_that_do_not_divide_data_and_fsdp_are_refused():
    with pytest.raises(
        ConfigError, match=r"fsdp=3, context=1, tensor=4 on 4 slices; only data and fsdp .* make data a multiple of 4"
    ):
        across_slices((2, 3, 1, 4), 4)


def test_mesh_has_auto_axes_and_one_device_holds_every_row():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert mesh.axis_names == AXES and set(mesh.axis_types) == {AxisType.Auto}
    assert local_rows(batch_sharding(mesh, Rules()), 12) == (0, 12)
