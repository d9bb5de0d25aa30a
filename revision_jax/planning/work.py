"""What a compiled program does on one chip: FLOPs of its matrix products, and bytes that go between the chip and its HBM.

Both are read off the program's text, so that a loop's body counts as often as it runs (the compiler's own `cost_analysis` counts it once) and so that padding
and work that every chip repeats are in it. FLOPs are those of `dot` and `convolution`, inside fusions too; an element-wise operation has none.
Bytes: every array that an instruction reads from HBM or writes to it, once; inside a fusion nothing is. Of an array that is only sliced the slice counts.
Source of the rules: XLA's HloCostAnalysis.
"""

from __future__ import annotations

import math
import re

import numpy as np

from revision_jax.planning.hlo import Computation, Instruction, Module

# These name or forward arrays and move nothing; what a loop or a call does is counted inside of it.
SILENT = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all", "partition-id", "replica-id", "opt-barrier",
    "optimization-barrier", "add-dependency", "async-start", "async-update", "async-done", "copy-done", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "iota",
})  # fmt: skip
SLICED = ("dynamic-slice", "slice", "gather")
FORWARDED = ("bitcast", "reshape", "copy", "convert", "transpose")


def flops(module: Module) -> int:
    """FLOPs of one call of the program on one chip."""
    return sum(times * product_flops(computation, instruction) for computation, instruction, times in module.runs() if instruction.op in ("dot", "convolution"))


def product_flops(computation: Computation, product: Instruction) -> int:
    """2 x multiplications of one `dot` or `convolution`. Windows of a convolution that lie on padding or on holes of a dilation multiply nothing."""
    left, right = (computation.instructions[name].shapes[0].dims for name in product.operands[:2])
    out = product.shapes[0]
    if product.op == "dot":
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        return 2 * out.elements * math.prod(left[int(axis)] for axis in summed.group(1).split(",") if axis)
    _, kernel, result = re.match(r"([^_]+)_([^\-]+)->(.+)", product.attribute("dim_labels")).groups()
    image = product.attribute("dim_labels").split("_")[0]
    spatial = [label for label in result if label.isdigit()]
    window = _window(product.attributes, len(spatial))
    touched = 1
    for label, (stride, low, dilate_left, dilate_right) in zip(sorted(spatial), window, strict=True):
        touched *= _pairs(left[image.index(label)], right[kernel.index(label)], out.dims[result.index(label)], stride, low, dilate_left, dilate_right)
    groups = re.search(r"batch_group_count=(\d+)", product.attributes)
    return 2 * touched * out.dims[result.index("b")] * out.dims[result.index("f")] * right[kernel.index("i")] // (int(groups.group(1)) if groups else 1)


def _window(attributes: str, axes: int) -> list[tuple[int, int, int, int]]:
    """(stride, padding before, dilation of the image, dilation of the kernel) of each spatial axis."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    given = dict(part.split("=") for part in found.group(1).split()) if found else {}
    numbers = lambda name: [int(n) for n in given[name].split("x")] if name in given else [1] * axes
    before = [int(pad.split("_")[0]) for pad in given["pad"].split("x")] if "pad" in given else [0] * axes
    return list(zip(numbers("stride"), before, numbers("lhs_dilate"), numbers("rhs_dilate"), strict=True))


def _pairs(image: int, kernel: int, out: int, stride: int, low: int, dilate_image: int, dilate_kernel: int) -> int:
    """How many (place of the result, place of the kernel) meet an element of the image along one axis."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * dilate_kernel - low
    return int(np.sum((at >= 0) & (at <= (image - 1) * dilate_image) & (at % dilate_image == 0)))


def hbm_bytes(module: Module) -> int:
    """Bytes that one call of the program moves between the chip and its HBM."""
    return sum(times * _moved(module, computation, instruction) for computation, instruction, times in module.runs(inside_fusions=False))


def _moved(module: Module, computation: Computation, instruction: Instruction) -> int:
    if instruction.op in SILENT:
        return 0
    fused = module.computations.get(instruction.attribute("calls") or "") if instruction.op == "fusion" else None
    read = sum(_read(module, computation, instruction, number, fused) for number in range(len(instruction.operands)))
    return read + _written(computation, instruction, fused)


def _slow(shapes) -> int:
    return sum(shape.bytes for shape in shapes if not shape.fast)


def _read(module: Module, computation: Computation, instruction: Instruction, number: int, fused: Computation | None) -> int:
    """Bytes read of one operand."""
    shapes = computation.shapes(instruction.operands[number : number + 1])
    whole = _slow(shapes)
    if whole == 0:
        return 0
    if fused is None:
        if instruction.op in SLICED and number == 0:
            return min(whole, _slow(instruction.shapes))
        return 0 if instruction.op == "dynamic-update-slice" and number == 0 else whole
    return min(whole, _used(module, fused, _parameter(fused, number), whole))


def _parameter(fused: Computation, number: int) -> str:
    return next(i.name for i in fused.instructions.values() if i.op == "parameter" and i.operands == (str(number),))


def _used(module: Module, fused: Computation, name: str, whole: int) -> int:
    """Bytes of a fusion's parameter that its users look at."""
    total = 0
    for user in fused.instructions.values():
        if name not in user.operands:
            continue
        if user.op in SLICED and user.operands[0] == name:
            total += sum(shape.bytes for shape in user.shapes)
        elif user.op == "dynamic-update-slice" and user.operands[0] == name:
            continue  # overwritten in place
        elif user.op in FORWARDED and not user.root:
            total += _used(module, fused, user.name, whole)
        elif user.op == "fusion":  # one inside another
            within = module.computations[user.attribute("calls")]
            total += sum(_used(module, within, _parameter(within, number), whole) for number, operand in enumerate(user.operands) if operand == name)
        else:
            return whole
    return min(whole, total)


def _written(computation: Computation, instruction: Instruction, fused: Computation | None) -> int:
    """Bytes written: of an update in place the update alone."""
    if fused is None:
        if instruction.op == "dynamic-update-slice":
            return _slow(computation.shapes(instruction.operands[1:2]))
        if instruction.op.endswith("-start"):  # its result names what it reads as well
            return _slow(instruction.shapes[1:2]) if instruction.op != "all-reduce-start" else _slow(instruction.shapes)
        return _slow(instruction.shapes)
    roots = fused.root.operands if fused.root is not None and fused.root.op == "tuple" else (fused.root.name,) if fused.root else ()
    total = 0
    for shape, name in zip(instruction.shapes, roots, strict=False):
        if not shape.fast:
            total += _updated(fused, name, shape.bytes)
    return total


def _updated(fused: Computation, name: str, whole: int) -> int:
    """Bytes that a result of a fusion writes; `name` is what computes it."""
    made = fused.instructions.get(name)
    while made is not None and made.op == "bitcast" and made.operands:
        made = fused.instructions.get(made.operands[0])
    if made is not None and made.op == "dynamic-update-slice":
        return min(whole, sum(shape.bytes for shape in fused.shapes(made.operands[1:2])))
    return whole
