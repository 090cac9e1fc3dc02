"""Random masks: what an inpainting network is shown of a training picture (Nichol et al. 2021).

GLIDE erases "random regions" (section 2.1) and says no more. Each row draws one of five kinds by
the shares of `MaskConfig`, and everything below uniformly, in shares of the side, from its own key:

- full: all is erased, so that the network still draws from nothing.
- rectangles: 1 to 4, centres anywhere, areas 2 % to 50 % of the picture uniformly in their
  logarithm, aspect ratios 1:3 to 3:1 likewise; what is outside the picture is cut off.
- stroke: a brush of width 0.05 to 0.25 that passes 2 to 8 points, each 0.1 to 0.5 from the one
  before in any direction (and stopped at the border), as people draw masks by hand.
- half plane: the far side of a straight line of any direction, at most 0.4 from the centre.
- border: each side is cut off with probability 1/2, one of them always, by 0.1 to 0.6; what is left
  is kept. It is what outpainting and zooming out ask for.

All is pure JAX that runs inside the training step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.errors import UserError

_RECTANGLES = 4
_POINTS = 8


@dataclass(frozen=True)
class MaskConfig:
    """Shares of the kinds of masks, relative to their sum."""

    full: float = 0.1
    rectangles: float = 0.3
    stroke: float = 0.25
    half_plane: float = 0.1
    border: float = 0.25

    def __post_init__(self) -> None:
        shares = [getattr(self, field.name) for field in fields(self)]
        if min(shares) < 0 or not 0 < sum(shares) < math.inf:
            raise UserError(f"masks are {shares}: give shares of 0 or more, one of them above 0")


def random_masks(key: Array, shape: tuple[int, ...], config: MaskConfig) -> Array:
    """Which pixels are kept.

    Args:
        key: typed key; row i depends on it and on i alone.
        shape: (B, H, W).
    Returns:
        [B, H, W, 1] bool, False where the picture is erased.
    """
    count, height, width = shape
    # Centres of the pixels, in shares of the side.
    y = (jnp.arange(height)[:, None] + 0.5) / height
    x = (jnp.arange(width)[None] + 0.5) / width
    kinds = {
        "full": lambda key, y, x: jnp.ones((height, width), bool),
        "rectangles": _rectangles,
        "stroke": _stroke,
        "half_plane": _half_plane,
        "border": _border,
    }
    drawn = [name for name in kinds if getattr(config, name) > 0]
    shares = jnp.asarray([getattr(config, name) for name in drawn])

    def erased(number: Array) -> Array:
        kind_key, own = jax.random.split(jax.random.fold_in(key, number))
        kind = jax.random.categorical(kind_key, jnp.log(shares))
        return jnp.stack([kinds[name](own, y, x) for name in drawn])[kind]

    return ~jax.vmap(erased)(jnp.arange(count))[..., None]


def _rectangles(key: Array, y: Array, x: Array) -> Array:
    keys = jax.random.split(key, 4)
    many = (_RECTANGLES,)
    count = jax.random.randint(keys[0], (), 1, _RECTANGLES + 1)
    areas = jnp.exp(_uniform(keys[1], math.log(0.02), math.log(0.5), many))
    aspects = jnp.exp(_uniform(keys[2], -math.log(3), math.log(3), many))
    middles = _uniform(keys[3], 0, 1, (2, *many))
    across, down = jnp.sqrt(areas * aspects), jnp.sqrt(areas / aspects)
    apart_y, apart_x = (
        jnp.abs(place[..., None] - middle) for place, middle in zip((y, x), middles, strict=True)
    )
    inside = (apart_y < down / 2) & (apart_x < across / 2)
    return jnp.any(inside & (jnp.arange(_RECTANGLES) < count), axis=-1)


def _stroke(key: Array, y: Array, x: Array) -> Array:
    keys = jax.random.split(key, 5)
    count = jax.random.randint(keys[0], (), 2, _POINTS + 1)
    width = _uniform(keys[1], 0.05, 0.25)
    angles = _uniform(keys[2], 0, 2 * math.pi, (_POINTS - 1,))
    moves = _uniform(keys[3], 0.1, 0.5, (_POINTS - 1, 1)) * _direction(angles)
    first = _uniform(keys[4], 0, 1, (2,))

    def move(point: Array, by: Array) -> tuple[Array, Array]:
        point = jnp.clip(point + by, 0, 1)
        return point, point

    _, others = jax.lax.scan(move, first, moves)
    points = jnp.concatenate([first[None], others])
    start, step = points[:-1], points[1:] - points[:-1]
    # The nearest point of each segment, [H, W, segments].
    dy, dx = y[..., None] - start[:, 0], x[..., None] - start[:, 1]
    length = jnp.maximum(jnp.sum(step**2, axis=-1), 1e-6)
    along = jnp.clip((dy * step[:, 0] + dx * step[:, 1]) / length, 0, 1)
    distance = jnp.hypot(dy - along * step[:, 0], dx - along * step[:, 1])
    passed = jnp.arange(_POINTS - 1) < count - 1
    return jnp.any((distance < width / 2) & passed, axis=-1)


def _half_plane(key: Array, y: Array, x: Array) -> Array:
    angle_key, offset_key = jax.random.split(key)
    down, across = _direction(_uniform(angle_key, 0, 2 * math.pi))
    return (y - 0.5) * down + (x - 0.5) * across > _uniform(offset_key, -0.4, 0.4)


def _border(key: Array, y: Array, x: Array) -> Array:
    cut_key, one_key, width_key = jax.random.split(key, 3)
    is_cut = jax.random.bernoulli(cut_key, 0.5, (4,))
    is_cut |= jnp.arange(4) == jax.random.randint(one_key, (), 0, 4)
    top, bottom, left, right = is_cut * _uniform(width_key, 0.1, 0.6, (4,))
    return (y < top) | (y > 1 - bottom) | (x < left) | (x > 1 - right)


def _uniform(key: Array, low: float, high: float, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def _direction(angle: Array) -> Array:
    """Unit vectors [..., 2]."""
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
