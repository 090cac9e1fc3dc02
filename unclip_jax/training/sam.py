"""Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412), each replica on its own.

The gradient is taken not at the weights w but where the loss is nearly the largest within rho:

    g = grad L(w),   e = rho g / ||g||,   step along grad L(w + e)      (algorithm 1, equation 2)

Replica k perturbs by the gradient of its own rows and only the second gradients are averaged
(m-sharpness, section 4.1). unCLIP trained its CLIP so, with rho 0.1 and 64 rows a replica (Ramesh
et al. 2022, appendix C). Two gradients make a step about twice as long, and since the perturbed
weights differ every device holds a whole copy of them, whatever the mesh's `fsdp` is.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from unclip_jax.errors import UserError
from unclip_jax.training.objectives import Gradient, Metrics, Objective, Params


def make_sam_gradient(
    objective: Objective,
    rho: float,
    *,
    ascent: Objective | None = None,
    mesh: Mesh | None = None,
    axes: tuple[str, ...] = ("data", "fsdp"),
) -> Gradient:
    """A drop-in for `jax.value_and_grad(objective, has_aux=True)`.

    Args:
        objective: a mean over the rows that it is given. With a mesh these are one replica's, and
            it may gather from the others over `axes`, as CLIP's loss does.
        rho: length of the perturbation, in the norm over all parameters together; 0 makes none.
        ascent: what the perturbation is computed of; None is `objective`. It must not gather.
        mesh: its devices along `axes` are the replicas, rows are split over them, and each draws
            its own randomness. None is one replica that has all rows.
    Returns:
        The gradient function. Loss and metrics are those at the perturbed weights, and
        `unperturbed_loss` is `ascent` at the weights themselves, all averaged over the replicas.
    Raises:
        UserError: rho is negative.
    """
    if rho < 0:
        raise UserError(f"optim.sam_rho is {rho}: give a radius, or 0 for a plain gradient")
    climb = jax.value_and_grad(ascent or objective, has_aux=True)
    if mesh is None:
        axes = ()

    def replica(
        params: Params, frozen: Params, batch: dict[str, Array], keys: Array
    ) -> tuple[tuple[Array, Metrics], Params]:
        key = keys[0]
        if axes:
            # Weights that all replicas share would get the gradient summed over all of them.
            params = jax.lax.pcast(params, axes, to="varying")
        (unperturbed, _), slope = climb(params, frozen, batch, key)

        def descend(perturbed: Params) -> tuple[Array, Metrics]:
            loss, metrics = objective(perturbed, frozen, batch, key)
            found = loss, {**metrics, "unperturbed_loss": unperturbed}
            return jax.lax.pmean(found, axes) if axes else found

        found, gradient = jax.value_and_grad(descend, has_aux=True)(perturb(params, slope, rho))
        return found, jax.lax.psum(gradient, axes) if axes else gradient

    if mesh is None:
        return lambda params, frozen, batch, key: replica(params, frozen, batch, key[None])
    replicas = math.prod(mesh.shape[axis] for axis in axes)
    rows, whole = PartitionSpec(axes), PartitionSpec()
    on_mesh = jax.shard_map(
        replica,
        mesh=mesh,
        in_specs=(whole, whole, rows, rows),
        out_specs=whole,
        axis_names=set(axes),
    )

    def gradient(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[tuple[Array, Metrics], Params]:
        return on_mesh(params, frozen, batch, jax.random.split(key, replicas))

    return gradient


def perturb(params: Any, slope: Any, rho: float) -> Any:
    """w + rho g / ||g|| with the norm over the whole tree; w itself where g is zero."""
    factor = rho / jnp.maximum(optax.tree.norm(slope), 1e-12)
    return jax.tree.map(lambda w, g: w + factor * g, params, slope)
