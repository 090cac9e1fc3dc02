"""The pieces that every network here is made of: dense layers and convolutions, norms, attention,
activations, time embedding.

Norms, softmax and the sinusoids are float32 whatever the compute dtype is. Every epsilon is 1e-5,
as in the PyTorch references; Flax's own default is 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array
from jax.sharding import AxisType, PartitionSpec

Activation = Literal["gelu", "quick_gelu"]
Attention = Literal["xla", "cudnn"]
Remat = Literal["none", "block", "dots"]
Block = TypeVar("Block", bound=nn.Module)

EPSILON = 1e-5


def activation(name: Activation) -> Callable[[Array], Array]:
    """The exact GELU (OpenCLIP, priors) or CLIP's x * sigmoid(1.702 x)."""
    if name == "quick_gelu":
        return lambda x: x * jax.nn.sigmoid(1.702 * x)
    return lambda x: jax.nn.gelu(x, approximate=False)  # JAX's default is the tanh approximation


def gather_weights(*arrays: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Inputs, kernel and bias in the compute dtype, the weights whole on every device.

    Weights that are sharded over a mesh are gathered here, after the cast: left alone, XLA splits a
    convolution with a sharded kernel into one for each shard, and moves the activations. Within
    `nn.remat` they are gathered again in the backward pass, and their gradient is scattered.

    Kernels may be held in bfloat16 to save memory; where no dtype is given they are read as the
    float32 that they were.
    """
    if dtype is None:
        arrays = (arrays[0], *(w if w is None else w.astype(jnp.float32) for w in arrays[1:]))
    inputs, *weights = promote_dtype(*arrays, dtype=dtype, inexact=inexact)
    mesh = jax.sharding.get_abstract_mesh()
    is_alone = mesh.empty or mesh.size == 1
    if is_alone or AxisType.Manual in mesh.axis_types:  # or in a device's own part
        return [inputs, *weights]
    return [inputs, *(None if weight is None else _gather(weight) for weight in weights)]


@jax.custom_vjp
def _gather(weight: Array) -> Array:
    # Without the barrier the constraint spreads to the float32 weight, twice the bytes.
    whole = jax.lax.optimization_barrier(weight)
    return jax.lax.with_sharding_constraint(whole, PartitionSpec())


def _scatter(_: None, gradient: Array) -> tuple[Array]:
    # The constraint's own transpose, behind a barrier, would have every device receive the whole
    # gradient. With two axes XLA scatters it over one and sums the parts over the other if nothing
    # is asked; with one it would pass slices of the product around a ring, but it finds a scatter
    # in a sum of which each device takes a part.
    mesh = jax.sharding.get_abstract_mesh()
    if max(mesh.shape.values()) == mesh.size:
        gradient = jax.lax.with_sharding_constraint(gradient, PartitionSpec())
    return (gradient,)


_gather.defvjp(lambda weight: (_gather(weight), None), _scatter)


def rematerialized(block: type[Block], remat: Remat, *, is_scanned: bool = False) -> type[Block]:
    """The block, with what its backward pass computes again instead of keeping it.

    'block' keeps only the inputs. 'dots' keeps the results of convolutions and of matrix products
    with weights; attention's own products, whose logits grow with the positions squared, are
    computed again with everything else.

    Args:
        is_scanned: the block is the body of an `nn.scan`, where nothing can be merged anyway.
    """
    if remat == "none":
        return block
    policy = _keeps if remat == "dots" else None
    return nn.remat(block, prevent_cse=not is_scanned, policy=policy)


def _keeps(primitive: Any, *arrays: Any, **parameters: Any) -> bool:
    """A policy of `jax.checkpoint`; JAX's own have no convolutions."""
    if primitive is jax.lax.conv_general_dilated_p:
        return True
    keeps = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return bool(keeps(primitive, *arrays, **parameters))


class Dense(nn.Dense):
    """`nn.Dense` whose weights may be sharded."""

    promote_dtype: Any = gather_weights


class Conv(nn.Conv):
    """`nn.Conv` whose weights may be sharded."""

    promote_dtype: Any = gather_weights


class Dropout(nn.Module):
    """`nn.Dropout` with cheap random bits (Srivastava et al. 2014).

    JAX's counter-based generator spends a hundred operations on a number. Here it draws two words a
    row, from which an integer hash (Wellons 2018, lowbias32) makes the bits of every position. They
    do not depend on how the batch is split over devices. XLA fuses the bits into the convolution
    that reads them, and compiles it many times faster than one with threefry inside.
    """

    rate: float
    """Share of entries [B, ...] that become zero; the others are scaled by 1 / (1 - rate)."""
    deterministic: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.deterministic or self.rate == 0:
            return x
        rows, *inner = x.shape
        words = jax.random.bits(self.make_rng("dropout"), (2, rows), jnp.uint32)
        # Else the generator is computed again wherever a row is read.
        first, second = jax.lax.optimization_barrier(words).reshape(2, rows, *(1 for _ in inner))
        position = jnp.arange(math.prod(inner), dtype=jnp.uint32).reshape(1, *inner)
        bits = mix_bits(mix_bits(position ^ first) ^ second)
        keep = bits >= np.uint32(round(self.rate * 2**32))
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


def mix_bits(x: Array) -> Array:
    """A permutation of uint32 in which every bit of the input flips half of the output's bits."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def layer_norm(name: str, epsilon: float = EPSILON) -> nn.LayerNorm:
    """LayerNorm over the last axis, computed in float32; the next Dense casts to its own dtype."""
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


class GroupNorm(nn.Module):
    """Every group of neighbouring channels to mean 0 and variance 1 over all positions, then a gain
    and a bias a channel (Wu & He 2018, eq. 1-7).

    `nn.GroupNorm` with its parameters, whose sums run over positions and a group's few channels
    together. Here each channel is summed alone and then those of a group, so that the channels stay
    the fastest axis: 2 to 9 times faster on a CPU (docs/performance.md).
    """

    groups: int
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, ..., C], C divisible by the groups → the same shape, float32."""
        batch, *positions, channels = x.shape
        x = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        axes = tuple(range(1, x.ndim - 1))
        count = math.prod(positions) * channels // self.groups

        def mean(x: Array) -> Array:
            sums = jnp.sum(x, axes).reshape(batch, self.groups, -1).sum(-1, keepdims=True) / count
            whole = jnp.broadcast_to(sums, (batch, self.groups, channels // self.groups))
            return whole.reshape(batch, *(1 for _ in positions), channels)

        x = x - mean(x)
        return x * (jax.lax.rsqrt(mean(x * x) + self.epsilon) * scale) + bias


def attention(
    q_BTNd: Array,
    k_BSNd: Array,
    v_BSNd: Array,
    mask_BNTS: Array | None = None,
    implementation: Attention = "xla",
) -> Array:
    """softmax(q k^T / sqrt(d)) v with a float32 softmax.

    Args:
        q_BTNd, k_BSNd, v_BSNd: [B, T or S, heads, head width], compute dtype.
        mask_BNTS: bool, broadcastable to [B, heads, T, S]; True may be attended to.
    Returns:
        [B, T, heads, head width], the dtype of q.
    """
    return jax.nn.dot_product_attention(
        q_BTNd, k_BSNd, v_BSNd, mask=mask_BNTS, implementation=implementation
    )


def timestep_embedding(t: Array, width: int, max_period: float = 10_000.0) -> Array:
    """Sinusoids of the timestep, cosines first (ADM, GLIDE, Karlo).

    Args:
        t: [B] int32 or float32, the original index of the timestep (not that of a respaced chain).
        width: even.
    Returns:
        [B, width] float32.
    """
    half = width // 2
    # Exponents rounded as torch rounds them, and an exact exponential: XLA's is off by 1e-6 on a
    # CPU, which t = 999 turns into 3e-4 of an angle.
    exponents = np.float32(-math.log(max_period)) * np.arange(half, dtype=np.float32) / half
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
