"""Denoising a picture in overlapping tiles, for sizes whose activations do not fit the memory.

The network sees one tile at a time, and at every step of the chain the tiles' outputs become one
picture again (MultiDiffusion, Bar-Tal et al. 2023), so that the noise and the next step are those
of the whole picture. Two ways to join them:

    crop    every pixel is taken from the one tile in which it is farthest from the edge. A network
            of convolutions, of which an output pixel sees R pixels to each side, returns exactly
            what it returns for the whole picture if the overlap is 2 R or more.
    blend   smooth windows that sum to one; no pixel's output jumps where another tile begins.

No overlap makes a network with GroupNorm exact: its mean and variance are those of a tile, not of
the picture. Then the tiles' outputs differ by slowly varying amounts, which `crop` shows as a seam
and `blend` spreads over the overlap, at every step anew. A tile as large as the training crop gives
the norms what they were trained on. What the tiles do not agree on stays visible as a slow drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.errors import UserError

Mode = Literal["crop", "blend"]


@dataclass(frozen=True)
class TilingConfig:
    """How a picture is cut into tiles.

    For a network that halves its resolution, tile, overlap and the picture's sides must be
    multiples of what it divides by (`UpsamplerConfig.multiple`): a tile that starts elsewhere
    pools other pixels together.
    """

    tile: int = 256
    """Side of a tile in pixels; the upsampler's training crop, or more."""
    overlap: int = 64
    """Pixels that neighbours share at least; the last tile ends with the picture and may share
    more."""
    mode: Mode = "blend"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile:
            raise UserError(
                f"tile is {self.tile} and overlap {self.overlap}: give a tile of 1 or more and an "
                "overlap that is smaller"
            )


def tiled_denoise(
    denoise: Callable[..., Array], config: TilingConfig, *aligned: Array
) -> Callable[[Array, Array], Array]:
    """`denoise` for a whole picture, run tile by tile.

    Args:
        denoise: (x [B, h, w, C], t [B], and a tile of each of `aligned`) → [B, h, w, D]. It must
            work for h and w of the tile, or of the picture where that is smaller.
        aligned: [B, H, W, ...] each, conditions that lie on the pixels of the picture, such as the
            resized small picture of an upsampler.
    Returns:
        (x_t [B, H, W, C], t [B]) → [B, H, W, D] float32, what `diffusion.samplers.sample` takes.
    """

    def run(xt: Array, t: Array) -> Array:
        pictures = (xt, *aligned)
        sides = [min(config.tile, side) for side in xt.shape[1:3]]
        tops, lefts = (tile_starts(side, config) for side in xt.shape[1:3])
        rows, columns = (
            jnp.asarray(tile_windows(side, config), jnp.float32) for side in xt.shape[1:3]
        )

        def one(top: Array, left: Array) -> Array:
            tiles = [
                jax.lax.dynamic_slice(
                    picture,
                    (0, top, left) + (0,) * (picture.ndim - 3),
                    (picture.shape[0], *sides, *picture.shape[3:]),
                )
                for picture in pictures
            ]
            return denoise(tiles[0], t, *tiles[1:])

        def add(total: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
            i, j = place
            top, left = jnp.asarray(tops)[i], jnp.asarray(lefts)[j]
            window = rows[i][:, None, None] * columns[j][None, :, None]
            output = window * one(top, left).astype(jnp.float32)
            here = jax.lax.dynamic_slice(total, (0, top, left, 0), output.shape)
            return jax.lax.dynamic_update_slice(total, here + output, (0, top, left, 0)), None

        shape = jax.eval_shape(one, jnp.int32(0), jnp.int32(0)).shape
        grid = np.stack(np.meshgrid(range(len(tops)), range(len(lefts)), indexing="ij"))
        places = jnp.asarray(grid.reshape(2, -1), jnp.int32)
        # One tile after another: a map over all would hold all their activations.
        empty = jnp.zeros((*xt.shape[:3], shape[-1]), jnp.float32)
        total, _ = jax.lax.scan(add, empty, (places[0], places[1]))
        return total

    return run


def tile_starts(side: int, config: TilingConfig) -> np.ndarray:
    """The first pixel of each tile along one side, [n] int32; the last tile ends with the side."""
    last = max(side - config.tile, 0)
    count = math.ceil(last / (config.tile - config.overlap)) + 1
    starts = np.arange(count) * (config.tile - config.overlap)
    return np.minimum(starts, last).astype(np.int32)


def tile_windows(side: int, config: TilingConfig) -> np.ndarray:
    """What each tile contributes to each of its pixels along one side.

    Returns:
        [n, min(tile, side)] float64. Over the picture the windows sum to one; a picture's window is
        the product of those of its two sides.
    """
    starts, tile = tile_starts(side, config), min(config.tile, side)
    windows = np.zeros((len(starts), side))
    borders = (starts[1:] + starts[:-1] + tile) // 2  # middle of what two neighbours share
    edges = np.concatenate([[0], borders, [side]])
    for i, start in enumerate(starts):
        if config.mode == "crop" or config.overlap == 0:
            windows[i, edges[i] : edges[i + 1]] = 1
            continue
        place = np.arange(tile) + 0.5
        rise = place if i else np.full(tile, np.inf)
        fall = tile - place if i < len(starts) - 1 else np.full(tile, np.inf)
        ramp = np.minimum(np.minimum(rise, fall) / config.overlap, 1)
        windows[i, start : start + tile] = np.sin(np.pi / 2 * ramp) ** 2
    windows /= windows.sum(axis=0)
    return np.stack([windows[i, start : start + tile] for i, start in enumerate(starts)])
