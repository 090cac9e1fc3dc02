"""A run that starts from other weights: what is taken, what is not, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training import toys
from unclip_jax.cli.overrides import load_recipe
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.errors import UserError
from unclip_jax.training.initial_weights import load_initial, start_from
from unclip_jax.training.recipe import recipe_to_json
from unclip_jax.training.run_folder import check_same_run, write_description
from unclip_jax.training.stages import init_params
from unclip_jax.training.state import init_state
from unclip_jax.training.weights import Stage, flatten, save_stage

ROOT = Path(__file__).parents[2]
PLAIN = toys.recipe("decoder", model=toys.SMALL_DECODER)
UNET = replace(toys.SMALL_DECODER["unet"], in_channels=7)
GROWN = toys.recipe("decoder_inpaint", model={"unet": UNET})


def random_params(recipe: Any, scale: float) -> Any:
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
    return jax.tree.map(jnp.asarray, toys.random_like(shapes, scale))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported decoder."""
    folder = tmp_path_factory.mktemp("plain") / "decoder"
    params = random_params(PLAIN, 0.3)
    save_stage(Stage(PLAIN, params, train_bpe(["a"], 600, 12), 5, "clip"), folder, "float32")
    return folder


def begin(recipe: Any, source: Any) -> Any:
    recipe = toys.changed(recipe, init_from=None if source is None else str(source))
    return start_from(recipe, init_state(random_params(recipe, 0.2), optax.sgd(1.0)))


def test_weights_are_taken_and_new_channels_are_zero(folder: Path) -> None:
    state, new = begin(GROWN, folder), begin(GROWN, None)
    given = flatten(load_initial(GROWN, str(folder)).params)
    for name, leaf in flatten(state.params).items():
        whole = leaf[:, :, :3] if name == "unet/conv_in/kernel" else leaf
        np.testing.assert_array_equal(whole, given[name])
    assert not np.any(state.params["unet"]["conv_in"]["kernel"][:, :, 3:])
    assert not np.array_equal(
        new.params["unet"]["conv_in"]["kernel"][:, :, :3], given["unet/conv_in/kernel"]
    )
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.params)
    assert state.step == 0


def test_weights_that_the_source_lacks_start_as_they_do(folder: Path) -> None:
    learned = toys.changed(GROWN, model={"null_embedding": "learned"})
    state, new = begin(learned, folder), begin(learned, None)
    np.testing.assert_array_equal(state.params["null_embedding"], new.params["null_embedding"])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            toys.recipe("decoder", model={"unet": replace(PLAIN.model.unet, channels=16)}),
            r"has shape .*the recipe's network needs .*give the recipe the same model",
        ),
        (
            toys.recipe(
                "decoder",
                model={"unet": replace(PLAIN.model.unet, has_middle_attention=False)},
            ),
            r"has a weight unet/middle_attention/\S+, which the recipe's network lacks",
        ),
        (toys.recipe("clip"), r"holds a decoder, the recipe trains a clip"),
    ],
    ids=["channels", "lacks", "kind"],
)
def test_what_does_not_fit_is_named(recipe: Any, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        begin(recipe, folder)


def test_the_emoji_fine_tune_is_the_shipped_decoder_and_four_channels() -> None:
    tuned: Any = load_recipe(str(ROOT / "configs" / "emoji" / "decoder_inpaint.py"))
    plain: Any = load_recipe(str(ROOT / "configs" / "emoji" / "decoder.py"))
    unet = replace(plain.model.unet, in_channels=7)
    assert tuned.model == replace(plain.model, unet=unet, is_inpainting=True)
    assert (tuned.data, tuned.diffusion) == (plain.data, plain.diffusion)
    stage = load_initial(tuned, tuned.init_from)
    assert recipe_to_json(stage.recipe)["model"] == recipe_to_json(plain)["model"]


def test_a_run_may_be_continued_without_the_weights_it_started_from(tmp_path: Path) -> None:
    write_description(toys.changed(GROWN, init_from="gone"), tmp_path, None, "id")
    assert check_same_run(toys.changed(GROWN, init_from=None), tmp_path) == "id"
