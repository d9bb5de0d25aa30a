"""FLOPs of a program by its traced form: every matrix product and convolution, bodies of loops as often as they run.

This is what "model FLOPs" means here, the numerator of MFU: counted on the step without rematerialisation, where a frozen weight has the two products of
forward and of the gradient that goes through it, and none for a gradient of its own. Element-wise work is left out, as in the usual formulas.
Source of the definition: PaLM (arXiv 2204.02311), appendix B.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from revision_jax.config import ExperimentConfig
from revision_jax.training.state import State, merge
from revision_jax.training.step import Loss


def model_flops(config: ExperimentConfig, make_loss: Callable[[ExperimentConfig], Loss], trainable: State, frozen: State, batch: dict[str, Any]) -> int:
    """FLOPs of loss and gradients of one step over a whole batch. Arguments may be abstract (`jax.ShapeDtypeStruct`).

    make_loss: the stage's loss for a config; the config that it gets keeps no layer's activations for a second time.
    """
    loss = make_loss(dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, remat="none")))

    def gradients(trainable: State, frozen: State, batch: dict[str, Any], key: jax.Array) -> Any:
        return jax.value_and_grad(lambda trained: loss(merge(trained, frozen), batch, key)[0])(trainable)

    return product_flops(gradients, trainable, frozen, batch, jax.eval_shape(lambda: jax.random.key(0)))


def product_flops(function: Callable, *args: Any, loops: int = 1) -> int:
    """FLOPs of `function(*args)`. Arguments may be abstract. What no result depends on is not counted.

    loops: how often a `while_loop`'s body runs; a trace does not say. A loop inside of it runs once a turn. Of the branches of a `cond` the costliest counts.
    """
    traced = jax.make_jaxpr(function)(*jax.tree.map(_bare, args))
    return _count(traced.jaxpr, loops, needed=True)


def _bare(x: Any) -> Any:
    """Without a sharding: the count is of the whole batch, wherever its parts lie."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x


def _count(jaxpr: Jaxpr, loops: int, needed: bool = False) -> int:
    return sum(_equation(equation, loops) for equation in (_needed(jaxpr) if needed else jaxpr.eqns))


def _needed(jaxpr: Jaxpr) -> list:
    """Equations that the results depend on."""
    wanted, kept = {variable for variable in jaxpr.outvars if not hasattr(variable, "val")}, []
    for equation in reversed(jaxpr.eqns):
        if any(variable in wanted for variable in equation.outvars):
            kept.append(equation)
            wanted.update(variable for variable in equation.invars if not hasattr(variable, "val"))
    return kept


def _equation(equation: Any, loops: int) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (summed, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in summed)
    if name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    inner = [_count(body, 1 if name == "while" else loops) for body in _bodies(params)]
    if name == "cond":
        return max(inner, default=0)
    times = {"scan": params.get("length", 1), "while": loops, "shard_map": params["mesh"].size if name == "shard_map" else 1}.get(name, 1)
    return times * sum(inner)


def _bodies(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Programs inside an equation's parameters; functions that are there for derivatives alone are not programs."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
