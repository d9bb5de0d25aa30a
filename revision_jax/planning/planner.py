"""Plans: every program under every strategy, compiled for a topology, reported.

A report is kept under the program, the mesh, the topology and all that the compiler is told, so that planning the same again takes no compilation. Compilers
work side by side, `jobs` at a time. What does not fit is tried again with less memory: `remedies` says how.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from revision_jax.config import ConfigError, ExperimentConfig, MeshConfig
from revision_jax.files import write_text
from revision_jax.planning import hlo, work
from revision_jax.planning.collectives import by_kind, collectives
from revision_jax.planning.programs import Program, chip_bytes, with_mesh
from revision_jax.planning.report import Report, gib
from revision_jax.planning.roofline import estimate
from revision_jax.planning.topologies import Topology
from revision_jax.sharding.activations import on_mesh
from revision_jax.sharding.chips import GIB
from revision_jax.sharding.mesh import AXES, make_mesh, mesh_shape
from revision_jax.sharding.strategies import Strategy, rules_named
from revision_jax.stored_programs import source_digest, versions

Told = Callable[[Report], None]


class Planner:
    """Plans for one topology. cache: a folder that keeps reports, or None."""

    def __init__(self, topology: Topology, cache: Path | None = None):
        self.topology, self.cache = topology, cache
        self._flops: dict[tuple, int] = {}

    def plan(self, programs: Sequence[Program], strategies: Sequence[Strategy], jobs: int = 1, told: Told | None = None) -> list[Report]:
        """Reports of all programs under all strategies, in this order. told: called with each as it is done.

        Raises ConfigError for a strategy that cannot split that many devices.
        """
        count = len(self.topology.devices)
        pairs = [(program, strategy, strategy.mesh(count)) for program in programs for strategy in strategies]
        for program in programs:
            self._analytic(program)  # traced here, one after another; the workers find it

        def one(pair: tuple) -> Report:
            program, strategy, mesh = pair
            report = self.report(with_mesh(program, dataclasses.replace(program.config, mesh=mesh)), strategy.name)
            if report.fits is False:
                report = dataclasses.replace(report, advice=self.advice(program, report, mesh))
            if told is not None:
                told(report)
            return report

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, pairs))

    def report(self, program: Program, strategy: str) -> Report:
        """One program for the mesh of its config. What cannot be compiled is a report too: its `problem` says why."""
        file = None if self.cache is None else self.cache / f"{self._key(program)}.json"
        if file is not None and file.is_file():
            try:
                return dataclasses.replace(Report.from_dict(json.loads(file.read_text(encoding="utf-8"))), strategy=strategy)
            except (ValueError, TypeError, OSError):
                pass  # not ours, or cut: made anew
        report = self._made(program, strategy)
        if file is not None:
            write_text(file, json.dumps(report.to_dict()) + "\n")
        return report

    def _key(self, program: Program) -> str:
        """All that a report depends on: the source of this package, versions, what the compiler is told, program, config, topology."""
        settings = (jax.config.jax_optimization_level, jax.config.jax_threefry_partitionable, jax.config.jax_default_prng_impl)
        rules = repr(rules_named(program.config.mesh.rules))
        compiler = (source_digest(), versions(), _libtpu(), settings, self.topology.name)
        parts = (*compiler, program.name, program.config.to_json(), rules, program.tokenizer.identity)
        return hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()

    def _analytic(self, program: Program) -> int:
        key = (program.name, program.rows)
        if key not in self._flops:
            with on_mesh(make_mesh(MeshConfig(), self.topology.devices[:1])):  # as it is traced for such a chip, and not for this machine's CPU
                self._flops[key] = program.flops()
        return self._flops[key]

    def _made(self, program: Program, strategy: str) -> Report:
        began = time.perf_counter()
        sizes = mesh_shape(program.config.mesh, len(self.topology.devices))
        report = Report(program.name, program.kind, strategy, self.topology.name, dict(zip(AXES, sizes, strict=True)), program.rows, program.positions)
        mesh = make_mesh(program.config.mesh, self.topology.devices)
        available = {} if self.topology.chip is None else {"available": self.topology.chip.usable}
        try:
            lowered, arguments = program.lowered(mesh)
        except ConfigError as error:
            return dataclasses.replace(report, problem=str(error))
        report = dataclasses.replace(report, flops={"analytic": self._analytic(program)})
        brought = chip_bytes(arguments)
        if available and brought > available["available"]:  # no need to ask the compiler
            return _too_big(report, brought, {"arguments": brought, "total": brought, **available}, "its arguments alone do not fit")
        try:
            compiled = lowered.compile()
        except Exception as error:  # the compiler's errors have no type of their own
            total = needed(str(error))
            if total is None:
                return dataclasses.replace(report, problem=_line(error), compile_s=time.perf_counter() - began)
            return _too_big(report, brought, {"arguments": brought, "temporaries": max(0, total - brought), "total": total, **available}, "out of HBM")
        order = {device: number for number, device in enumerate(self.topology.devices)}
        report = self._measured(report, compiled, brought, [order[device] for device in mesh.devices.flat])
        return dataclasses.replace(report, compile_s=time.perf_counter() - began)

    def _measured(self, report: Report, compiled: jax.stages.Compiled, brought: int, order: list[int]) -> Report:
        # Arguments as the chip holds them: the compiler leaves out what the program does not look at (an encoder whose features are stored).
        memory, chip = compiled.memory_analysis(), self.topology.chip
        own = {
            "arguments": brought, "temporaries": memory.temp_size_in_bytes, "output": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes, "code": memory.generated_code_size_in_bytes,
        }  # fmt: skip
        own["total"] = own["arguments"] + own["temporaries"] + own["output"] - own["aliased"] + own["code"]
        module = hlo.parse(compiled.as_text())
        found = collectives(module, len(order))
        flops, hbm = work.flops(module), work.hbm_bytes(module)
        report = dataclasses.replace(
            report, fits=None if chip is None else own["total"] <= chip.usable, bytes=own if chip is None else {**own, "available": chip.usable},
            flops={**report.flops, "compiled": flops, "compiler": int(compiled.cost_analysis().get("flops", 0))}, hbm_bytes=hbm, collectives=by_kind(found),
        )  # fmt: skip
        time = estimate(self.topology, order, flops, hbm, found)
        if time is None or time.step == 0:
            return report
        return dataclasses.replace(
            report, seconds={"compute": time.compute, "hbm": time.hbm, "interconnect": time.interconnect, "step": time.step}, binds=time.binds,
            rows_per_s=report.rows / time.step, positions_per_s=report.positions / time.step or None,
            mfu_ceiling=report.flops["analytic"] / (len(order) * chip.flops * time.step),
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------------------------------------- advice

    def advice(self, program: Program, report: Report, mesh) -> str:
        """What would make a program fit that does not: the first remedy that the compiler agrees to, or why there is none."""
        split = report.bytes["arguments"] > report.bytes["available"]
        tried = []
        for label, config in itertools.chain(() if split else remedies(program, report), smaller_base(program, report)):
            again = self.report(with_mesh(program, dataclasses.replace(config, mesh=mesh)), report.strategy)
            if again.fits:
                return f"fits with {label} ({gib(again.bytes['total'])} GiB)"
            tried.append(label)
        if split:
            also = f", {' or '.join(tried)} does not change that" if tried else ""
            return f"weights and inputs alone take {gib(report.bytes['arguments'])} GiB of a chip: split the weights over more of them (fsdp, tensor){also}"
        return f"does not fit with {' or '.join(tried)} either" if tried else "there is nothing to turn down here; use more chips or another strategy"


def _too_big(report: Report, brought: int, sizes: dict[str, int], problem: str) -> Report:
    return dataclasses.replace(report, fits=False, bytes=sizes, problem=problem)


def remedies(program: Program, report: Report) -> Iterator[tuple[str, ExperimentConfig]]:
    """(dotted overrides, config) that need less memory, the least harm first: compute more of a layer again, then take the batch in parts, which changes no
    result; where the loss compares all of a batch (pretrain, language), fewer rows."""
    config, told = program.config, ""
    if program.kind != "train":
        return
    policies = ("none", "dots", "full")
    for policy in policies[policies.index(config.decoder.remat) + 1 :]:
        told = f"decoder.remat={policy} "
        config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, remat=policy))
        yield told.strip(), config
    # Temporaries grow with the rows, arguments hardly: the largest share of the batch that may fit, and half of that.
    room = (report.bytes["available"] - report.bytes["arguments"]) / max(1, report.bytes["total"] - report.bytes["arguments"])
    factor = 2
    while factor < program.rows and 1 / factor > room:
        factor *= 2
    whole = program.stage.task in ("pretrain", "language")
    for share in (factor, 2 * factor):
        parts = program.stage.accumulate * share
        if program.rows % parts == 0:
            change = {"batch": program.rows // share} if whole else {"accumulate": parts}
            stages = tuple(dataclasses.replace(stage, **change) if stage.name == program.stage.name else stage for stage in config.train.stages)
            ((field, value),) = change.items()
            changed = dataclasses.replace(config, train=dataclasses.replace(config.train, stages=stages))
            yield f"{told}train.stages.{program.stage.name}.{field}={value}", changed


def smaller_base(program: Program, report: Report) -> Iterator[tuple[str, ExperimentConfig]]:
    """As `remedies`, and tried behind them, because it changes the model's numbers: an int8 base, then that with the thriftiest of them. Nothing where a stage
    trains the decoder."""
    if program.kind != "train" or program.config.train.base_dtype == "int8":
        return
    label = "train.base_dtype=int8"
    for told, config in (("", program.config), *list(remedies(program, report))[-1:]):
        try:
            yield f"{told} {label}".strip(), dataclasses.replace(config, train=dataclasses.replace(config.train, base_dtype="int8"))
        except ConfigError:
            return


def needed(message: str) -> int | None:
    """Bytes that a program needs in all, from the compiler's refusal; None where it refused for another reason.

    XLA says "the total memory required for HLO temporaries (37.75G) exceeds available HBM (15.75G)", arguments included, or "Used 24.5G of 15.75G hbm".
    """
    found = re.search(r"(?:required for HLO temporaries \(|Used )([\d.]+)([KMGT])", message)
    return int(float(found.group(1)) * GIB * {"K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10}[found.group(2)]) if found else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _libtpu() -> str:
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return "none"
