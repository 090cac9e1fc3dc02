"""Floating-point operations of a program, counted from the shapes of its matrix products.

One multiply and one add are two operations. Matrix products and convolutions count, at full cost at
the borders of a picture; elementwise work, norms and softmaxes do not, as is usual for model FLOPs
utilisation (Chowdhery et al. 2022, appendix B). What rematerialisation computes again is not work
of the model and does not count either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from unclip_jax.errors import UserError


def forward_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of one call.

    Args:
        arguments: arrays or their shapes.
    """
    flops, _ = _count(jax.make_jaxpr(function)(*arguments).jaxpr, None)
    return flops


def training_flops(function: Callable[..., Any], params: Any, *arguments: Any) -> int:
    """Operations of a call and of its gradient with respect to `params`.

    A product costs as much again for each factor that depends on `params`: so a frozen encoder is
    counted once, and a layer three times, or twice if its input is data.

    Args:
        function: (params, *arguments) → the loss first.
    """
    jaxpr = jax.make_jaxpr(function)(params, *arguments).jaxpr
    depends = [True] * len(jax.tree.leaves(params))
    depends += [False] * (len(jaxpr.invars) - len(depends))
    flops, _ = _count(jaxpr, depends)
    return flops


def _count(jaxpr: Jaxpr, depends: Sequence[bool] | None) -> tuple[int, list[bool]]:
    """Operations, and which outputs depend on the parameters; backward only if `depends` is given.

    Args:
        depends: for each input, whether it depends on them.
    """
    tainted = set()
    if depends is not None:
        tainted = {var for var, is_on in zip(jaxpr.invars, depends, strict=True) if is_on}

    def is_tainted(atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in tainted

    total = 0
    for equation in jaxpr.eqns:
        inputs = [is_tainted(atom) for atom in equation.invars]
        found, outputs = _equation(equation, inputs, depends is not None)
        total += found
        for var, is_on in zip(equation.outvars, outputs, strict=True):
            aval: Any = var.aval
            if is_on and jnp.issubdtype(aval.dtype, jnp.inexact):
                tainted.add(var)
    return total, [is_tainted(var) for var in jaxpr.outvars]


def _equation(equation: Any, inputs: list[bool], has_backward: bool) -> tuple[int, list[bool]]:
    name, params = equation.primitive.name, equation.params
    every = [any(inputs)] * len(equation.outvars)
    given = inputs if has_backward else None
    if name == "dot_general":
        return _dot(equation) * (1 + sum(inputs)), every
    if name == "conv_general_dilated":
        return _convolution(equation) * (1 + sum(inputs)), every
    if name == "scan":
        return _scan(params, given, every)
    if name == "while":
        body = _closed(params["body_jaxpr"])
        if _count(body, None)[0]:
            raise UserError(
                "a loop of unknown length holds matrix products: they cannot be counted"
            )
        return 0, every
    if name == "cond":
        own = None if given is None else given[1:]
        counts = [_count(_closed(branch), own) for branch in params["branches"]]
        return max(count for count, _ in counts), every
    inner = next((params[key] for key in _INNER if key in params), None)
    if inner is None:
        return 0, every
    body = _closed(inner)
    if len(body.invars) != len(inputs):  # closed over constants of its own
        raise UserError(f"{name} cannot be counted: its body takes other inputs")
    found, outputs = _count(body, given)
    devices = params["mesh"].size if name == "shard_map" else 1
    return found * devices, outputs if has_backward else every


_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Where a primitive that calls a function keeps it."""


def _scan(
    params: dict[str, Any], given: list[bool] | None, every: list[bool]
) -> tuple[int, list[bool]]:
    """The body as often as it runs; what a step makes depend on the parameters stays so."""
    body, first = _closed(params["jaxpr"]), params["num_consts"]
    carried = params["num_carry"]
    if given is None:
        return params["length"] * _count(body, None)[0], every
    depends = list(given)
    while True:
        found, outputs = _count(body, depends)
        grown = list(depends)
        for i, is_on in enumerate(outputs[:carried]):
            grown[first + i] = grown[first + i] or is_on
        if grown == depends:
            return params["length"] * found, outputs
        depends = grown


def _closed(jaxpr: Any) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _dot(equation: Any) -> int:
    ((contracted, _), _) = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    numbers = equation.params["dimension_numbers"]
    out_features = kernel[numbers.rhs_spec[0]]
    products = math.prod(kernel) // out_features // equation.params["batch_group_count"]
    # Holes in a dilated input are not multiplied by anything.
    holes = math.prod(equation.params["lhs_dilation"] or (1,))
    return 2 * math.prod(equation.outvars[0].aval.shape) * products // holes
