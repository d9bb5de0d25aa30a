"""Rules that map their tensors to our leaves, checked as a whole before anything is read.

    RULES = (
        Rule("model.embed_tokens.weight", "params/decoder/embed/embedding"),
        Rule("model.layers.{i}.mlp.up_proj.weight", "params/decoder/layers/mlp/up/kernel[{i}]", TRANSPOSE),
        Rule("lm_head.weight", "params/decoder/embed/embedding", optional=True),   # given twice: must be equal
    )
    plan = make_plan(RULES, (Ignore("*.rotary_emb.inv_freq", "computed"),), source, target)
    for path, index, array in plan.apply(): ...                                    # index: slice of the leaf's leading axis, or None
    for name, array in export_plan(RULES, target).backward(read): ...              # read(path, index) -> our array

A placeholder in braces stands for a number. `[{i}]` at the end of a target is the slice of the leading (layer) axis that the tensor fills.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from revision_jax.convert.source import Source
from revision_jax.convert.transforms import SAME, Transform
from revision_jax.errors import UserError

SHOWN = 12  # of alike findings in one error, the rest is counted
FLOATS = tuple(np.dtype(x) for x in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))


class Rule(NamedTuple):
    """Their tensor `source` fills our leaf `target`. optional: the source may lack it; a leaf that only such rules fill may stay as it is.

    Without a source (None) the whole leaf is zero, because the source's model is ours without it; nothing is exported of it.
    """

    source: str | None
    target: str
    transform: Transform = SAME
    optional: bool = False


class Ignore(NamedTuple):
    """Source tensors (shell wildcards) that are known and not needed."""

    source: str
    why: str


class Step(NamedTuple):
    """One tensor on its way."""

    source: str | None
    path: str
    index: int | None
    transform: Transform
    alias: bool = False  # the leaf has been filled by an equal tensor: nothing to do


class Plan:
    """Steps that passed every check."""

    def __init__(self, steps: Sequence[Step], target: Mapping[str, Any], source: Source | None = None, unfilled: Sequence[str] = ()):
        self.steps = tuple(steps)
        self.target = dict(target)
        self.source = source
        self.unfilled = tuple(unfilled)  # leaves that only optional rules fill, and none did
        self._by_place = {(step.path, step.index): step for step in self.steps if not step.alias}

    def is_sliced(self, path: str) -> bool:
        """Whether a leaf is filled by one tensor for each slice of its leading axis."""
        return (path, 0) in self._by_place

    def read(self, path: str, index: int | None = None) -> np.ndarray:
        """One leaf, or one slice of its leading axis, as the source gives it; a view of the source where the transform is one.

        Raises KeyError for a leaf that the plan does not fill.
        """
        assert self.source is not None, "an export plan has no source"
        step = self._by_place.get((path, index))
        if step is None and index is not None and (path, None) in self._by_place:
            return self.read(path)[index]
        if step is None and index is None and self.is_sliced(path):
            return np.stack([self.read(path, i) for i in range(self.target[path].shape[0])])
        if step is None:
            raise KeyError(path if index is None else f"{path}[{index}]")
        if step.source is None:
            return np.broadcast_to(np.zeros((), self.dtypes()[path]), self.target[path].shape)
        return step.transform.forward(self.source.read(step.source))

    def apply(self) -> Iterator[tuple[str, int | None, np.ndarray]]:
        """(path, index, array) in the order of the source's tensors, one at a time."""
        for step in self.steps:
            if not step.alias:
                yield step.path, step.index, self.read(step.path, step.index)

    def without(self, leaves: Collection[str]) -> Plan:
        """The plan that leaves these to others."""
        target = {path: leaf for path, leaf in self.target.items() if path not in leaves}
        return Plan([step for step in self.steps if step.path in target], target, self.source, [path for path in self.unfilled if path in target])

    def backward(self, read: Callable[[str, int | None], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """(their name, array): `read(path, index)` gives our leaf, or a slice of its leading axis.

        Leaves of ours that are one tensor of theirs are written once; raises UserError, at the end and for all of them, where they differ.
        """
        parts: dict[str, list[Step]] = defaultdict(list)
        aliases: dict[str, list[Step]] = defaultdict(list)
        for step in self.steps:
            if step.source is not None:
                (aliases if step.alias else parts)[step.source].append(step)
        different = []
        for name, steps in parts.items():
            for twin in aliases[name] if self.source is None else ():
                if not np.array_equal(read(steps[0].path, steps[0].index), read(twin.path, twin.index)):
                    different.append(f"{steps[0].path} and {twin.path} (both {name})")
            steps = sorted(steps, key=lambda step: step.transform.part or (0, 1))
            arrays = [step.transform.backward(read(step.path, step.index)) for step in steps]
            yield name, arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        if different:
            raise UserError(f"export: one tensor of theirs, but these of ours differ: {_listed(different)}")

    def dtypes(self) -> dict[str, np.dtype]:
        """Each filled leaf's dtype as the source stores it; zeros are of the first one's."""
        assert self.source is not None, "an export plan has no source"
        found = {step.path: self.source.tensors[step.source].dtype for step in self.steps if step.source is not None and not step.alias}
        zero = next(iter(found.values()), np.dtype(np.float32))
        return found | {step.path: zero for step in self.steps if step.source is None}


# ------------------------------------------------------------------------------------------------------------------- matching

_FIELD = re.compile(r"\{(\w+)\}")
_STACKED = re.compile(r"\[\{\w+\}\]$")  # a target that is a slice


def _regex(pattern: str) -> re.Pattern:
    seen: set[str] = set()

    def field(name: str) -> str:
        first = name not in seen
        seen.add(name)
        return rf"(?P<{name}>\d+)" if first else f"(?P={name})"

    pieces = _FIELD.split(pattern)  # text, field, text, ...
    return re.compile("".join(field(piece) if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)))


def _slice(target: str) -> tuple[str, int | None]:
    """"a/b[3]" -> ("a/b", 3); "a/b" -> ("a/b", None)."""
    found = re.fullmatch(r"(.*)\[(\d+)\]", target)
    return (found[1], int(found[2])) if found else (target, None)


def _named(rule: Rule, match: re.Match, index: int | None) -> str:
    """The rule's source for the leaf that its target matched; the field that the match does not know is the slice's number."""
    return _FIELD.sub(lambda field: match.groupdict().get(field[1]) or str(index), rule.source)


def _listed(findings: Sequence[str]) -> str:
    more = len(findings) - SHOWN
    return ", ".join(findings[:SHOWN]) + (f" and {more} more" if more > 0 else "")


# ------------------------------------------------------------------------------------------------------------------- planning


def make_plan(rules: Sequence[Rule], ignores: Sequence[Ignore], source: Source, target: Mapping[str, Any], dtype: str | None = None) -> Plan:
    """Which tensor goes where, everything checked but the values.

    target: full path -> anything with `.shape`, all leaves that this source is to fill and no others. dtype: what floating tensors will be turned
    into; None keeps what is stored, and then they must all be of one dtype. Raises one UserError that lists every source tensor without a
    rule, every leaf that is not or only partly filled, every shape and dtype that does not fit, and tensors given twice that differ.
    """
    compiled = [(rule, _regex(rule.source)) for rule in rules if rule.source is not None]
    steps: list[Step] = []
    unknown, foreign, misfits = [], [], []
    filled: dict[tuple[str, int | None], Step] = {}
    twice: list[tuple[Step, Step]] = []
    for name, info in source.tensors.items():
        matches = [(rule, match) for rule, regex in compiled if (match := regex.fullmatch(name))]
        if not matches and not any(fnmatchcase(name, ignore.source) for ignore in ignores):
            unknown.append(name)
        for rule, match in matches:
            path, index = _slice(rule.target.format(**match.groupdict()))
            step = Step(name, path, index, rule.transform)
            if path not in target or (index is not None and index >= target[path].shape[0]):
                foreign.append(f"{name} (for {path}{'' if index is None else f'[{index}]'})")
                continue
            expected = tuple(target[path].shape)[0 if index is None else 1 :]
            try:
                # A transform of views needs no memory for this: all elements of the probe are one.
                shape = rule.transform.forward(np.broadcast_to(np.zeros((), info.dtype), info.shape)).shape
                if shape != expected:
                    misfits.append(f"{name} has shape {info.shape}, the config wants {path} {expected} ({rule.transform.name})")
            except ValueError as error:
                misfits.append(f"{name} has shape {info.shape}, which does not fit {path} {expected}: {error}")
            if (path, index) in filled:
                twice.append((filled[path, index], step))
                step = step._replace(alias=True)
            else:
                filled[path, index] = step
            steps.append(step)
    for rule in rules:
        if rule.source is None and rule.target in target:
            filled[rule.target, None] = Step(None, rule.target, None, rule.transform)
            steps.append(filled[rule.target, None])
    missing, unfilled = _missing(rules, filled, target)
    problems = [f"tensors that this format does not know: {_listed(unknown)}"] if unknown else []
    problems += [f"tensors that this model does not have: {_listed(foreign)}"] if foreign else []
    problems += [f"missing: {_listed(missing)}"] if missing else []
    problems += [f"of another shape: {_listed(misfits)}"] if misfits else []
    problems += _dtype_problems(source, [step.source for step in steps if step.source is not None], dtype)
    if not misfits:
        different = [f"{second.source} is not equal to {first.source}" for first, second in twice if not _equal(source, first, second)]
        problems += [f"tied weights given twice and different: {_listed(different)}"] if different else []
    if problems:
        raise UserError(f"{source.path}: {'; '.join(problems)}")
    return Plan(steps, target, source, unfilled)


def _missing(rules: Sequence[Rule], filled: Mapping[tuple[str, int | None], Step], target: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(what should be there and is not, told by the source's names; leaves that may stay unfilled)."""
    makers: dict[str, list[tuple[Rule, re.Match]]] = defaultdict(list)
    for rule in rules:
        regex = _regex(_STACKED.sub("", rule.target))
        for path in target:
            if match := regex.fullmatch(path):
                makers[path].append((rule, match))
    missing, unfilled = [], []
    for path, leaf in target.items():
        stacked = any(_STACKED.search(rule.target) for rule, _ in makers[path])
        holes = [index for index in (range(leaf.shape[0]) if stacked else (None,)) if (path, index) not in filled]
        if not holes:
            continue
        if makers[path] and all(rule.optional for rule, _ in makers[path]) and (not stacked or len(holes) == leaf.shape[0]):
            unfilled.append(path)
            continue
        if not makers[path]:
            missing.append(f"{path} (no rule of this format fills it)")
            continue
        rule, match = next((pair for pair in makers[path] if not pair[0].optional), makers[path][0])
        missing += [_named(rule, match, index) for index in holes]
    return list(dict.fromkeys(missing)), unfilled


def _dtype_problems(source: Source, used: Sequence[str], dtype: str | None) -> list[str]:
    kinds: dict[np.dtype, list[str]] = defaultdict(list)
    for name in dict.fromkeys(used):
        kinds[source.tensors[name].dtype].append(name)
    odd = [f"{name} is {kind}" for kind, names in kinds.items() if kind not in FLOATS for name in names]
    problems = [f"weights must be floating numbers of 16 bits or more (no quantised ones): {_listed(odd)}"] if odd else []
    floats = {kind: names for kind, names in kinds.items() if kind in FLOATS}
    if dtype is None and len(floats) > 1:
        told = ", ".join(f"{len(names)} of {kind} (such as {names[0]})" for kind, names in sorted(floats.items(), key=lambda item: -len(item[1])))
        problems.append(f"mixed dtypes: {told}; say which one is wanted (--dtype)")
    return problems


def _equal(source: Source, first: Step, second: Step) -> bool:
    a, b = (step.transform.forward(source.read(step.source)) for step in (first, second))
    if a.shape != b.shape:
        return False
    if a.ndim == 0:
        return bool(a == b)
    rows = max(1, 2**22 // max(1, a[0].size))  # a few MB at a time: the embedding of a 7B model has a gigabyte
    return all(np.array_equal(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows))


def export_plan(rules: Sequence[Rule], target: Mapping[str, Any]) -> Plan:
    """The way back: a step for every leaf of `target` (full path -> anything with `.shape`) and slice of it, by the first rule that fills it.

    Raises UserError for leaves without a rule: the foreign format has no place for them.
    """
    steps, homeless, written = [], [], set()
    for path, leaf in target.items():
        fitting = ((rule, match) for rule in rules if (match := _regex(_STACKED.sub("", rule.target)).fullmatch(path)))
        rule, match = next(fitting, (None, None))
        if rule is None:
            homeless.append(path)
            continue
        if rule.source is None:
            continue
        for index in range(leaf.shape[0]) if _STACKED.search(rule.target) else (None,):
            name = _named(rule, match, index)
            alias = rule.transform.part is None and name in written
            written.add(name)
            steps.append(Step(name, path, index, rule.transform, alias))
    if homeless:
        raise UserError(f"export: the format has no place for {_listed(homeless)}")
    return Plan(steps, target)
