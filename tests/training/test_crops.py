"""Random crops: what is in them, and that rows are independent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.errors import UserError
from unclip_jax.training.crops import random_crops
from unclip_jax.training.recipes.clip import CLIPRecipe

SIDE = 16


def ramps(count: int) -> jax.Array:
    """Pictures whose two channels are the place, so that a crop says where it is from."""
    place = jnp.arange(SIDE, dtype=jnp.float32)
    one = jnp.stack(jnp.meshgrid(place, place, indexing="ij"), axis=-1)
    return jnp.broadcast_to(one, (count, *one.shape))


def test_a_crop_is_a_square_inside_the_picture() -> None:
    crops = np.asarray(random_crops(jax.random.key(0), ramps(64), 0.5))
    steps = np.diff(crops[:, 4:12], axis=1)[:, :, 8, 0]  # rows of the picture per row of the crop
    shares = steps.mean(axis=1)
    np.testing.assert_allclose(steps, np.broadcast_to(shares[:, None], steps.shape), atol=1e-4)
    columns = np.diff(crops[:, 8, 4:12, 1], axis=1).mean(axis=1)
    np.testing.assert_allclose(shares, columns, atol=1e-4)
    assert 0.5 <= shares.min() < 0.6 and 0.9 < shares.max() <= 1
    middle = crops[:, 7:9, 7:9].mean(axis=(1, 2))  # the crop's centre, in rows and columns
    room = SIDE * shares[:, None] / 2
    assert np.all(middle >= room - 0.51) and np.all(middle <= SIDE - room - 0.49)
    assert middle.std(axis=0).min() > 0.5


def test_a_whole_crop_is_the_picture() -> None:
    np.testing.assert_allclose(random_crops(jax.random.key(0), ramps(2), 1.0), ramps(2), atol=1e-5)


def test_rows_are_cropped_differently_and_each_by_its_own_key() -> None:
    crops = random_crops(jax.random.key(3), ramps(4), 0.6)
    assert float(jnp.abs(crops[0] - crops[1]).max()) > 0.1
    changed = random_crops(jax.random.key(3), ramps(4).at[1].set(0.0), 0.6)
    np.testing.assert_array_equal(crops[0], changed[0])


@pytest.mark.parametrize("least", [0.0, -1.0, 1.5])
def test_a_share_outside_of_0_to_1_is_refused(least: float) -> None:
    with pytest.raises(UserError, match="least_crop"):
        CLIPRecipe(least_crop=least)
