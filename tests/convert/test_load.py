"""Straight onto devices: each gets its part, and no process reads more than its own devices hold. Forced CPU devices, in processes of their own."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from revision_jax import checkpoint, paths
from revision_jax.config import DecoderConfig, ExperimentConfig, GroundingConfig, LevelConfig, LoraConfig
from revision_jax.convert.assemble import Part, assemble
from revision_jax.convert.load import load_state
from revision_jax.convert.rehearsal import random_checkpoint
from revision_jax.convert.write import write_checkpoint
from revision_jax.models.decoder import split_layers
from revision_jax.models.quantize import STACKS
from tests.tiny import config as tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A small VideoLLaMA3 as transformers writes it, in shards, and the same converted."""
    folder = tmp_path_factory.mktemp("model")
    vision = dataclasses.replace(tiny().vision, projection=0)
    adapter = dataclasses.replace(tiny().grounding.level("patch").adapter, width=vision.width)
    levels = (LevelConfig(name="patch", kind="patch", budget=16, tokens=8, adapter=adapter),)
    decoder = DecoderConfig(vocab=64, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=48, qkv_bias=True, lora=LoraConfig(rank=0), dtype="bfloat16")
    config = ExperimentConfig(vision=vision, text=None, decoder=decoder, grounding=GroundingConfig(levels=levels))
    foreign = random_checkpoint(folder / "foreign", "video_llama_3", config, shard_bytes=10_000)
    assert len(list(foreign.glob("*.safetensors"))) > 3
    made = assemble([Part(foreign)])
    return foreign, write_checkpoint(folder / "ours", made.config, made.plans, made.files)


def start(folders, *process: int, devices: int) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "tests.convert.placing", *map(str, (*folders, *process))]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> dict:
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def test_four_devices_of_one_process_hold_their_parts_and_the_files_are_read_once(folders):
    told = finish(start(folders, devices=4))
    assert told["devices"] == 4 and told["equal"] == [True, True]
    assert told["taken"] == told["wanted"] == [told["all"]] * 2


@pytest.mark.parametrize("where", [None, SingleDeviceSharding(jax.devices()[0])])
def test_layers_come_apart_as_they_are_read(folders, where):
    """From released shards, and from what was converted: the layers of the stacked state, one by one."""
    made = assemble([Part(folders[0])])
    whole = load_state(made.plans, dtype="float32")
    wanted = {**whole, "params": {**whole["params"], "decoder": split_layers(whole["params"]["decoder"])}}
    released = load_state(made.plans, dtype="float32", shardings=where, apart=STACKS)
    converted = checkpoint.load(folders[1], dtype="float32", shardings=where, apart=STACKS).state
    assert set(wanted["params"]["decoder"]["layers"]) == {"0", "1", "2"}
    for read in (released, converted):
        assert jax.tree.structure(read) == jax.tree.structure(wanted)
        jax.tree.map(np.testing.assert_array_equal, read, wanted)


@pytest.mark.slow
def test_each_of_two_processes_reads_its_own_bytes_alone(folders):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [start(folders, index, 2, port, devices=2) for index in range(2)]
    for told in map(finish, processes):
        assert told["devices"] == 4 and told["equal"] == [True, True]
        assert told["taken"] == told["wanted"] and max(told["taken"]) < 0.6 * told["all"]  # half of what is split, and the few numbers that all hold


def test_a_device_s_numbers_do_not_hang_on_the_file(folders, tmp_path):
    made = assemble([Part(folders[0])])
    one = SingleDeviceSharding(jax.devices()[0])
    ours = write_checkpoint(tmp_path / "ours", made.config, made.plans, made.files)
    whole = paths.flatten(load_state(made.plans))
    leaves = paths.flatten(checkpoint.load(ours, shardings=lambda config: one, dtype="float32").state)
    (ours / "model.safetensors").write_bytes(b"")
    for name, leaf in leaves.items():
        assert leaf.sharding == one and leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, whole[name].astype(np.float32))
