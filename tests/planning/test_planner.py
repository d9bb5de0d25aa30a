"""The planner itself, on one CPU device: reports, their cache, refusals, remedies."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from revision_jax.config import ConfigError
from revision_jax.planning import topologies
from revision_jax.planning.planner import Planner, needed, remedies, smaller_base
from revision_jax.planning.programs import all_programs, chip_bytes, with_mesh
from revision_jax.planning.report import Report
from revision_jax.planning.vocabulary import stand_in
from revision_jax.sharding.chips import CHIPS, GIB
from revision_jax.sharding.mesh import make_mesh
from revision_jax.sharding.strategies import strategy_named
from tests.planning import stages

CONFIG = stages.config()
TOKENIZER = stand_in(CONFIG)


@pytest.fixture(scope="module")
def program():
    return next(iter(all_programs(CONFIG, TOKENIZER, "1a")))


@pytest.fixture(scope="module")
def topology():
    return topologies.load("cpu:1")


def test_every_stage_and_every_program_of_answering_is_listed():
    names = [program.name for program in all_programs(CONFIG, TOKENIZER)]
    assert names[:4] == ["train 1a", "train 1b", "train 2", "train 3"]
    assert {"question", "window tokens sparse", "window answer sparse", "frame prefix dense", "frame answer dense", "patch answer patch"} <= set(names)
    with pytest.raises(ConfigError, match=r"--stage 7: no such stage; there are 1a, 1b, 2, 3"):
        all_programs(CONFIG, TOKENIZER, "7")


def test_positions_are_all_slots_of_the_decoder(program):
    sizes, level = CONFIG.grounding, CONFIG.grounding.level("dense")
    before = 1  # the start token
    assert program.positions == 16 * (before + 2 * level.tokens + sizes.prompt_len + sizes.answer_len)  # frames, and a cue for each


def test_a_plan_is_made_once(program, topology, tmp_path, monkeypatch):
    planner, told = Planner(topology, tmp_path), []
    (first,) = planner.plan([program], [strategy_named("fsdp")], told=told.append)
    assert told == [first] and first.problem == "" and first.fits is None
    mesh = strategy_named("fsdp").mesh(1)
    _, arguments = with_mesh(program, dataclasses.replace(CONFIG, mesh=mesh)).lowered(make_mesh(mesh, topology.devices))
    assert first.bytes["arguments"] == chip_bytes(arguments) and first.bytes["total"] > first.bytes["arguments"]
    assert first.collectives == {} and 0.9 < first.flops["compiled"] / first.flops["analytic"] < 1.1

    monkeypatch.setattr(Planner, "_made", lambda *_: pytest.fail("compiled again"))
    assert Planner(topology, tmp_path).plan([program], [strategy_named("fsdp")]) == [first]
    (file,) = tmp_path.iterdir()
    monkeypatch.undo()
    file.write_text("{ cut")  # a file that is no report is made anew
    monkeypatch.setattr(Planner, "_made", lambda *_: first)
    assert Planner(topology, tmp_path).plan([program], [strategy_named("fsdp")]) == [first]


@pytest.mark.parametrize("name", ["window answer sparse", "frame answer dense", "patch answer patch"])
def test_an_answer_takes_as_many_turns_as_it_has_choices(name, topology):
    """Of the compiled program, whose loops are read, and of the trace, which is told their turns: the same work."""
    program = next(program for program in all_programs(CONFIG, TOKENIZER) if program.name == name)
    (report,) = Planner(topology).plan([program], [strategy_named("dp")])
    assert report.problem == "" and 0.9 < report.flops["compiled"] / report.flops["analytic"] < 1.1


def test_another_config_topology_or_setting_is_another_plan(program, topology):
    planner = Planner(topology)
    key = planner._key(program)
    assert key == planner._key(program)
    assert key != planner._key(with_mesh(program, dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, remat="full"))))
    assert key != Planner(dataclasses.replace(topology, name="cpu:2"))._key(program)


def test_a_batch_that_does_not_divide_is_a_report_that_says_so(program, topology):
    odd = with_mesh(program, dataclasses.replace(CONFIG, mesh=dataclasses.replace(strategy_named("fsdp").mesh(1), rules="fsdp")))
    odd = dataclasses.replace(odd, stage=dataclasses.replace(odd.stage, copies=(("lora/dense", "lora/none"),)))
    with pytest.raises(ConfigError, match="lora/none"):
        odd.lowered(make_mesh(odd.config.mesh, topology.devices))
    report = Planner(topology).report(odd, "fsdp")
    assert "lora/none" in report.problem and report.bytes == {}


def test_arguments_that_do_not_fit_are_not_compiled(program, topology):
    small = dataclasses.replace(CHIPS["v5e"], usable_gib=1e-5)
    (report,) = Planner(dataclasses.replace(topology, chip=small)).plan([program], [strategy_named("dp")])
    assert report.advice.endswith("train.base_dtype=int8 does not change that")
    assert report.fits is False and report.compile_s == 0 and report.lacks == report.bytes["arguments"] - small.usable
    assert report.advice.startswith("weights and inputs alone take") and "split the weights" in report.advice


def test_what_the_compiler_refuses():
    short = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (37.75G) exceeds available HBM (15.75G)."
    long = "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm."
    assert needed(short) == int(37.75 * GIB) and needed(long) == int(24.5 * GIB) and needed("INTERNAL: something else") is None


def test_remedies_recompute_first_and_then_take_the_batch_in_parts(program):
    sizes = {"arguments": 2 * GIB, "total": 20 * GIB, "available": 16 * GIB}
    report = Report("train 1a", "train", "dp", "v5e:8x8", {}, 16, 0, fits=False, bytes=sizes)
    found = dict(remedies(program, report))
    first, second, third, fourth = found
    assert first == "decoder.remat=dots" and found[first].decoder.remat == "dots" and found[first].train == CONFIG.train
    assert second == "decoder.remat=full" and third == f"{second} train.stages.1a.accumulate=2" and fourth == f"{second} train.stages.1a.accumulate=4"
    assert found[fourth].train.stages[0].accumulate == 4 and found[fourth].train.stages[1:] == CONFIG.train.stages[1:]
    tighter = dataclasses.replace(report, bytes={**sizes, "total": 100 * GIB})  # 14 of 98 GiB: an eighth of the rows
    assert list(dict(remedies(program, tighter)))[2].endswith("accumulate=8")
    pictures = dataclasses.replace(program, stage=dataclasses.replace(program.stage, task="pretrain"))  # whose loss compares all of a batch
    assert [told for told, _ in remedies(pictures, report)][2:] == [f"{second} train.stages.1a.batch=8", f"{second} train.stages.1a.batch=4"]
    answer = next(program for program in all_programs(CONFIG, TOKENIZER) if program.kind == "answer")
    assert list(remedies(answer, report)) == []


def test_advice_is_the_first_remedy_that_fits(program, topology, monkeypatch):
    sizes = {"arguments": 2 * GIB, "total": 20 * GIB, "available": 16 * GIB}
    report = Report("train 1a", "train", "dp", "v5e:8x8", {}, 16, 0, fits=False, bytes=sizes)
    tried = []

    def made(self, program, strategy):
        tried.append((program.config.decoder.remat, program.rows, program.stage.accumulate))
        return dataclasses.replace(report, fits=program.stage.accumulate > 1, bytes={**sizes, "total": 15 * GIB})

    monkeypatch.setattr(Planner, "_made", made)
    assert Planner(topology).advice(program, report, CONFIG.mesh) == "fits with decoder.remat=full train.stages.1a.accumulate=2 (15.00 GiB)"
    assert tried == [("dots", 16, 1), ("full", 16, 1), ("full", 16, 2)]


def test_an_int8_base_is_the_last_remedy_and_the_only_one_where_the_weights_do_not_fit(program, topology, monkeypatch):
    sizes = {"arguments": 2 * GIB, "total": 20 * GIB, "available": 16 * GIB}
    report = Report("train 1a", "train", "dp", "v5e:8x8", {}, 16, 0, fits=False, bytes=sizes)
    others = [label for label, _ in remedies(program, report)]
    found = dict(smaller_base(program, report))
    assert list(found) == ["train.base_dtype=int8", f"{others[-1]} train.base_dtype=int8"]
    tried = []

    def made(self, program, strategy):
        tried.append(program.config.train.base_dtype)
        return dataclasses.replace(report, fits=program.config.train.base_dtype == "int8", bytes={**sizes, "total": 15 * GIB})

    monkeypatch.setattr(Planner, "_made", made)
    assert Planner(topology).advice(program, report, CONFIG.mesh) == "fits with train.base_dtype=int8 (15.00 GiB)"
    assert tried == ["float32"] * len(others) + ["int8"]
    tried.clear()
    large = dataclasses.replace(report, bytes={**sizes, "arguments": 17 * GIB})
    assert Planner(topology).advice(program, large, CONFIG.mesh) == "fits with train.base_dtype=int8 (15.00 GiB)" and tried == ["int8"]
    stages = (dataclasses.replace(program.stage, train=("params/decoder",)), *CONFIG.train.stages[1:])
    trained = with_mesh(program, dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, stages=stages)))
    assert list(smaller_base(trained, report)) == []


def test_an_int8_base_takes_fewer_bytes_of_a_chip(program, topology):
    mesh = make_mesh(CONFIG.mesh, topology.devices)
    small = with_mesh(program, dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, base_dtype="int8")))
    half = with_mesh(program, dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, base_dtype="bfloat16")))
    sizes = []
    for one in (half, small):
        arguments = one.lowered(mesh)[1][1]["params"]["decoder"]["layers"]
        sizes.append(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments)))
    kernels = sum(leaf.size for leaf in jax.tree.leaves(arguments) if leaf.dtype == jnp.int8)
    scales = sum(leaf.size for leaf in jax.tree.leaves(arguments) if leaf.dtype == jnp.float32)
    assert kernels > 0 and sizes[0] - sizes[1] == kernels - 4 * scales  # two bytes became one, and there are scales
