"""CLIP's and SigLIP's losses over all pairs of a batch, of which each device makes its own rows.

Every device gathers all embeddings [B, E] and holds the logits of its own rows, [B/n, B] (Radford
et al. 2021, section 2.5). The whole matrix, 4 GiB at CLIP's B = 32,768, exists nowhere. The gather
is differentiated with the rest, so value and gradient are those of one device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

ContrastiveLoss = Callable[[Array, Array, Array, Array], tuple[Array, Array]]
"""(image [B, E], text [B, E], logit scale, logit bias) → (loss, accuracy)."""


def make_contrastive_loss(
    name: Literal["softmax", "sigmoid"], *, mesh: Mesh | None = None, axes: tuple[str, ...] = ()
) -> ContrastiveLoss:
    """One of the two losses below, of a whole batch or of a part of it.

    Args:
        name: softmax does not read the logit bias.
        mesh: the rows are split over all its axes, and the loss is the batch's. None makes the
            whole matrix of logits.
        axes: instead of a mesh, for a caller inside `jax.shard_map`: see `softmax_loss`.
    """
    if mesh is not None and mesh.size == 1:
        mesh = None
    over = axes if mesh is None else tuple(mesh.axis_names)

    def loss(image: Array, text: Array, scale: Array, bias: Array) -> tuple[Array, Array]:
        if name == "softmax":
            return softmax_loss(image, text, scale, over)
        return sigmoid_loss(image, text, scale, bias, over)

    if mesh is None:
        return loss

    def mean_loss(*inputs: Array) -> tuple[Array, Array]:
        return jax.lax.pmean(loss(*inputs), over)

    rows, whole = PartitionSpec(over), PartitionSpec()
    return jax.shard_map(
        mean_loss, mesh=mesh, in_specs=(rows, rows, whole, whole), out_specs=(whole, whole)
    )


def softmax_loss(
    image: Array, text: Array, logit_scale: Array, axes: tuple[str, ...] = ()
) -> tuple[Array, Array]:
    """CLIP's symmetric cross-entropy over all pairs of the batch (Radford et al. 2021, figure 3).

    Args:
        image, text: [B, E] float32, unit norm; row i of one belongs to row i of the other.
        logit_scale: scalar factor on the cosines.
        axes: names of mapped axes over which the batch is split. The arrays are then this device's
            rows, which are compared with those of all devices.
    Returns:
        the loss, and the share of pictures whose own caption is nearest: means over the rows that
        were given, so that their mean over the devices is the batch's.
    """
    own = _own_columns(image.shape[0], axes)
    to_text = logit_scale * _cosines(image, text, axes)
    to_image = logit_scale * _cosines(text, image, axes)
    loss = _cross_entropy(to_text, own) + _cross_entropy(to_image, own)
    return loss / 2, jnp.mean(jnp.argmax(to_text, axis=1) == own)


def sigmoid_loss(
    image: Array,
    text: Array,
    logit_scale: Array,
    logit_bias: Array,
    axes: tuple[str, ...] = (),
) -> tuple[Array, Array]:
    """SigLIP: a binary decision for each pair (Zhai et al. 2023, equation 1), summed over texts.

    Arguments and returns as `softmax_loss`; `logit_bias` is a scalar.
    """
    own = _own_columns(image.shape[0], axes)
    logits = logit_scale * _cosines(image, text, axes) + logit_bias
    sign = 2 * (jnp.arange(logits.shape[1]) == own[:, None]) - 1
    loss = -jnp.mean(jnp.sum(jax.nn.log_sigmoid(sign * logits), axis=1))
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == own)


def _cosines(rows: Array, others: Array, axes: tuple[str, ...]) -> Array:
    """[B/n, B]: these rows against the others of the whole batch."""
    if axes:
        others = jax.lax.all_gather(others, axes, tiled=True)
    # A TPU's default is bfloat16, whose error the temperature multiplies by up to 100.
    return jnp.matmul(rows, others.T, precision="highest")


def _own_columns(rows: int, axes: tuple[str, ...]) -> Array:
    """[rows] int32: where in the whole batch each of these rows has its partner."""
    first = rows * jax.lax.axis_index(axes) if axes else 0
    return first + jnp.arange(rows)


def _cross_entropy(logits: Array, own: Array) -> Array:
    """Mean over rows of -log softmax at the column `own`."""
    rows = jnp.arange(logits.shape[0])
    return -jnp.mean(jax.nn.log_softmax(logits, axis=1)[rows, own])
