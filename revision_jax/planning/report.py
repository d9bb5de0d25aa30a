"""What is told of one program under one strategy, as JSON and as a row of the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from revision_jax.planning.collectives import NETWORK
from revision_jax.sharding.chips import GIB, Chip

SHORT = {
    "all-gather": "gather", "all-reduce": "reduce", "reduce-scatter": "scatter", "all-to-all": "all-to-all", "collective-permute": "permute",
    "collective-broadcast": "broadcast", "ragged-all-to-all": "all-to-all",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """One row. Bytes and FLOPs are per chip unless they say otherwise, seconds are the roofline's (`roofline.py`); None: not known."""

    program: str
    kind: str
    strategy: str
    topology: str
    mesh: dict[str, int]
    rows: int  # examples, windows or questions of a call
    positions: int
    fits: bool | None = None  # None: it does not compile, or nothing is known of the chip
    problem: str = ""  # why it does not compile, in one line
    advice: str = ""  # what would make it fit
    bytes: dict[str, int] = field(default_factory=dict)  # arguments, temporaries, output, aliased (output in the place of arguments), code, total, available
    flops: dict[str, int] = field(default_factory=dict)  # analytic (of all chips), compiled, compiler (its own count: loops once)
    hbm_bytes: int | None = None
    collectives: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # compute, hbm, interconnect, step
    binds: str = ""
    rows_per_s: float | None = None
    positions_per_s: float | None = None
    mfu_ceiling: float | None = None
    compile_s: float = 0.0

    @property
    def lacks(self) -> int:
        """Bytes that a chip is short of; 0 where it fits."""
        return max(0, self.bytes.get("total", 0) - self.bytes.get("available", self.bytes.get("total", 0)))

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Report:
        return Report(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def ranked(reports: Iterable[Report]) -> list[Report]:
    """Those of one program, best first: what fits by the time of a step (by the bytes of a chip where no time is known), what does not by what it lacks."""

    def key(report: Report) -> tuple:
        if report.problem and not report.bytes.get("total"):
            return (2, 0, 0, report.strategy)
        step = report.seconds.get("step", 0.0)
        return (1, report.lacks, 0, report.strategy) if report.fits is False else (0, step, report.bytes.get("total", 0), report.strategy)

    return sorted(reports, key=key)


def by_program(reports: Iterable[Report]) -> dict[str, list[Report]]:
    """Reports of each program, ranked, in the order in which programs came."""
    groups: dict[str, list[Report]] = {}
    for report in reports:
        groups.setdefault(report.program, []).append(report)
    return {name: ranked(group) for name, group in groups.items()}


def gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def counted(number: float) -> str:
    """1.2e13 -> "12.0T"."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def shape(mesh: dict[str, int]) -> str:
    """"fsdp 16 x tensor 4": the axes with more devices than one."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "1 device"


def short(kind: str) -> str:
    """"gather" for "all-gather", "network reduce" for one that goes between slices."""
    return NETWORK + SHORT[kind.removeprefix(NETWORK)] if kind.startswith(NETWORK) else SHORT[kind]


def moved(collectives: dict[str, dict[str, float]]) -> str:
    """"gather 545: 29.4G, reduce 102: 618M"."""
    return ", ".join(f"{short(kind)} {row['count']:.0f}: {counted(row['bytes'])}" for kind, row in collectives.items()) or "none"


COLUMNS = (
    "program", "#", "strategy", "mesh", "args", "temps", "output", "total", "fits", "FLOP", "of a chip", "collectives (count: bytes)", "compute", "HBM",
    "links", "tokens/s", "MFU at most",
)  # fmt: skip


def table(title: str, reports: Sequence[Report], chip: Chip | None) -> Table:
    """One table: a section a program, best strategy first. GiB of a chip, milliseconds of a step; the time that binds is bold."""
    caption = "args, temps, output, total: GiB a chip; compute, HBM, links: ms of a step at the hardware's peak, the one that binds in bold"
    if chip is not None:
        caption += f"; {chip.kind}: {chip.usable_gib:.2f} GiB usable, {chip.flops / 1e12:.0f} TFLOP/s, HBM {chip.hbm_bandwidth / 1e9:.0f} GB/s"
    made = Table(*COLUMNS, title=title, caption=caption)
    for name, group in by_program(reports).items():
        for place, report in enumerate(group, start=1):
            made.add_row(name if place == 1 else "", *cells(report, place))
        made.add_section()
    return made


def cells(report: Report, place: int) -> list[str | Text]:
    """A row's texts behind the program's name."""
    head: list[str | Text] = [str(place), report.strategy, shape(report.mesh)]
    if not report.bytes:
        return [*head, *[""] * 4, report.problem, *[""] * 8]
    own = report.bytes
    fits = "" if report.fits is None else "yes" if report.fits else f"no: {gib(report.lacks)} GiB too much"
    memory = [gib(own["arguments"]), *(gib(own[name]) if name in own else "" for name in ("temporaries", "output")), gib(own["total"]), fits]
    work = [counted(report.flops["analytic"]), counted(report.flops["compiled"]) if "compiled" in report.flops else ""]
    links = moved(report.collectives) if "compiled" in report.flops else ""
    times = [Text(milliseconds(report.seconds.get(name)), style="bold" if report.binds == name else "") for name in ("compute", "hbm", "interconnect")]
    speed = report.positions_per_s or report.rows_per_s
    unit = "" if report.positions_per_s else " rows"
    rate = [f"{counted(speed)}{unit}" if speed else "", f"{report.mfu_ceiling:.0%}" if report.mfu_ceiling is not None else ""]
    return [*head, *memory, *work, links, *times, *rate]


def markdown(reports: Sequence[Report]) -> str:
    """The table for a page of documentation."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for name, group in by_program(reports).items():
        for place, report in enumerate(group, start=1):
            texts = [f"**{cell.plain}**" if isinstance(cell, Text) and cell.style == "bold" else str(cell) for cell in cells(report, place)]
            lines.append(f"| {' | '.join([name if place == 1 else '', *texts])} |")
    return "\n".join(lines) + "\n"
