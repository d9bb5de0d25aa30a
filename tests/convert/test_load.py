"""Straight onto devices: each gets its part, and nobody reads more. Four CPU devices in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = '''
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding
from jax import ShapeDtypeStruct
from configs.tiny import get_config
from revision_jax import checkpoint, paths
from revision_jax.convert.load import load_state
from revision_jax.convert.plan import Rule, make_plan
from revision_jax.convert.source import ArraySource
from revision_jax.convert.transforms import TRANSPOSE

folder = Path(sys.argv[1])
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
up, norm = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6), np.arange(8, dtype=np.float32)
shardings = {"params": {"up": NamedSharding(mesh, P("a", "b", None)), "norm": NamedSharding(mesh, P())}}

(folder / "words.json").write_text("{}")
checkpoint.export({"params": {"up": up, "norm": norm}}, get_config(), folder / "words.json", folder / "out", dtype="float32")
arrays = {"up.0": up[0].T, "up.1": up[1].T, "norm": norm}
target = {"params/up": ShapeDtypeStruct(up.shape, np.float32), "params/norm": ShapeDtypeStruct(norm.shape, np.float32)}
plan = make_plan((Rule("up.{i}", "params/up[{i}]", TRANSPOSE), Rule("norm", "params/norm")), (), ArraySource(arrays), target)
asked = []
place = checkpoint.place
checkpoint.place = lambda shape, sharding, read: place(shape, sharding, lambda index: (part := read(index), asked.append(part.shape))[0])

ours = checkpoint.load(folder / "out", shardings=lambda config: shardings, dtype="bfloat16").state
for state in (ours, load_state([plan], dtype="bfloat16", shardings=shardings)):
    leaf = state["params"]["up"]
    assert leaf.sharding == shardings["params"]["up"] and str(leaf.dtype) == "bfloat16"
    assert {shard.data.shape for shard in leaf.addressable_shards} == {(1, 2, 6)}
    np.testing.assert_array_equal(np.asarray(leaf, np.float32), up)
    np.testing.assert_array_equal(np.asarray(state["params"]["norm"], np.float32), norm)
assert set(asked) == {(1, 2, 6), (8,)}, asked
one = SingleDeviceSharding(jax.devices()[1])
leaves = paths.flatten(checkpoint.load(folder / "out", shardings=one).state)
assert all(leaf.devices() == {jax.devices()[1]} for leaf in leaves.values())
(folder / "out" / "model.safetensors").write_bytes(b"")  # a device's numbers do not hang on the file
np.testing.assert_array_equal(np.asarray(leaves["params/up"]), up)
print("fine")
'''


def test_parts_go_to_their_devices(tmp_path):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr
