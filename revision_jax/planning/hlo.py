"""Reading a compiled program's text: instructions with their shapes, and how often each runs.

    module = parse(compiled.as_text())
    for instruction, times in module.runs(): ...

`runs` starts at the entry and goes into everything that is called; the body of a loop runs as often as the loop says: the compiler's own count where it gives
one, else the constant that the loop's condition compares with. A loop that may end early (decoding) counts with its longest. Of branches each counts once.
Source of the format: XLA's HLO text (openxla.org/xla/operation_semantics).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SIZES = {"pred": 1, "token": 0, "opaque": 0}  # bytes of an element whose type does not end in its bits


@dataclass(frozen=True)
class Shape:
    """One array. `fast`: it lies in memory on the chip (VMEM), not in HBM."""

    dtype: str
    dims: tuple[int, ...]
    fast: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        if self.dtype in SIZES:
            return self.elements * SIZES[self.dtype]
        bits = re.match(r"[a-z]+(\d+)", self.dtype)
        return -(-self.elements * int(bits.group(1)) // 8) if bits else 0


@dataclass(frozen=True)
class Instruction:
    name: str
    op: str
    shapes: tuple[Shape, ...]  # of the result; several for a tuple
    operands: tuple[str, ...]
    attributes: str  # everything behind the operands
    root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Computations it calls; of a loop also its condition."""
        named = re.findall(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)", self.attributes)
        listed = re.findall(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}", self.attributes)
        return (*named, *(name.strip().lstrip("%") for group in listed for name in group.split(",")))

    def attribute(self, name: str) -> str | None:
        """The computation or word that an attribute names: `body` of a loop."""
        found = re.search(rf"\b{name}=%?([\w.\->]+)", self.attributes)
        return found.group(1) if found else None


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction | None:
        return next((instruction for instruction in self.instructions.values() if instruction.root), None)

    def shapes(self, names: tuple[str, ...]) -> list[Shape]:
        """Shapes of some instructions' results, tuples one after another."""
        return [shape for name in names if name in self.instructions for shape in self.instructions[name].shapes]


@dataclass
class Module:
    computations: dict[str, Computation]
    entry: str

    def runs(self, inside_fusions: bool = True) -> Iterator[tuple[Computation, Instruction, int]]:
        """(its computation, instruction, how often it runs in one call of the program). inside_fusions: also what a fusion is made of."""
        for name, count in self.times(inside_fusions).items():
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                yield computation, instruction, count

    def times(self, inside_fusions: bool = True) -> dict[str, int]:
        """How often each computation runs in one call of the program; inside_fusions: also those that fusions are made of."""
        times: dict[str, int] = {}

        def visit(name: str, count: int) -> None:
            if name not in self.computations:
                return
            times[name] = times.get(name, 0) + count
            for instruction in self.computations[name].instructions.values():
                if instruction.op == "while":
                    trips = self.trips(instruction)
                    visit(instruction.attribute("body"), count * trips)
                elif instruction.op not in APPLIED and (inside_fusions or instruction.op != "fusion"):
                    for called in instruction.called:
                        visit(called, count)

        visit(self.entry, 1)
        return times

    def trips(self, loop: Instruction) -> int:
        """How often a loop's body runs, at most. 1 where neither the compiler nor the condition says."""
        known = re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations.get(loop.attribute("condition") or "")
        found = [] if condition is None else self._constants(condition)
        return max(1, -(-max(found) // self._stride(loop, condition))) if found else 1

    def _constants(self, computation: Computation) -> list[int]:
        """Whole-number constants of a computation and of what it calls, but for what is applied to elements: how bytes are added up bounds no loop."""
        found = [value for value in map(_whole, computation.instructions.values()) if value is not None]
        calls = [i for i in computation.instructions.values() if i.op not in APPLIED]
        called = [self.computations[name] for i in calls for name in i.called if name in self.computations]
        return found + [value for other in called for value in self._constants(other)]

    def _stride(self, loop: Instruction, condition: Computation) -> int:
        """By how much a turn of a loop adds to what its condition compares: the compiler may write several turns as one."""
        counters = [i for i in condition.instructions.values() if i.op == "get-tuple-element" and i.shapes[0].dims == ()]
        body = self.computations.get(loop.attribute("body") or "")
        if len(counters) != 1 or body is None or body.root is None or body.root.op != "tuple":
            return 1
        number = int(re.search(r"index=(\d+)", counters[0].attributes).group(1))
        added = body.instructions.get(body.root.operands[number])
        while added is not None and added.op in ("copy", "bitcast"):
            added = body.instructions.get(added.operands[0])
        if added is None or added.op != "add":
            return 1
        steps = [_whole(body.instructions[name]) for name in added.operands if name in body.instructions]
        return next((step for step in steps if step), 1)


def _whole(instruction: Instruction) -> int | None:
    """The value of a constant that is a whole number."""
    if instruction.op != "constant" or instruction.shapes[0].dims or instruction.shapes[0].dtype[:1] not in "su":
        return None
    literal = re.fullmatch(r"-?\d+", instruction.operands[0])
    return int(literal.group()) if literal else None


# What these call is applied to elements, not run as a part of the program.
APPLIED = frozenset(
    {"reduce", "all-reduce", "all-reduce-start", "reduce-scatter", "reduce-window", "scatter", "select-and-scatter", "map", "sort", "custom-call"}
)
_HEAD = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s+\(.*\)\s*->\s*.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+)\s+=\s+(.*)$")
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")


def parse(text: str) -> Module:
    """The module of a program's text. Raises ValueError where there is no entry in it."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations[head.group(2)] = Computation(head.group(2))
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            found = _LINE.match(line)
            if found:
                instruction = _instruction(bool(found.group(1)), found.group(2), found.group(3))
                current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("no HLO module: it has no ENTRY computation")
    return Module(computations, entry)


def _instruction(root: bool, name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes, rest = _shapes(rest[:end]), rest[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    inside = rest[opened + 1 : closed]
    op = rest[:opened].strip()
    operands = (inside.strip(),) if op == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(_bare(inside))
    return Instruction(name, op, shapes, operands, rest[closed + 1 :], root)


def _bare(inside: str) -> list[str]:
    """Operands that are written without %."""
    return [part.split()[-1] for part in re.sub(r"\{[^}]*\}|\[[^\]]*\]|/\*.*?\*/", "", inside).split(",") if part.strip()]


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(re.sub(r"\D", "", size)) for size in dims.split(",") if size), "S(1)" in (layout or ""))
        for dtype, dims, layout in _SHAPE.findall(text)
    )


def _closing(text: str, opened: int) -> int:
    """Where the bracket that opens at `opened` closes."""
    depth = 0
    for at in range(opened, len(text)):
        if text[at] == "(":
            depth += 1
        elif text[at] == ")":
            depth -= 1
            if depth == 0:
                return at
    raise ValueError(f"no closing bracket in {text[opened : opened + 60]!r}")
