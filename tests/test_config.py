"""Recipes: every file in configs/ builds, comes back from JSON, and a typo is named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import pytest

from tests.training import toys
from unclip_jax.cli.overrides import load_recipe
from unclip_jax.config import DataConfig, from_dict, to_dict
from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.errors import UserError
from unclip_jax.training.recipe import STAGES, recipe_from_json, recipe_to_json, stage_of
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.stages import init_params

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(CONFIGS.rglob("*.py"))
NAMES = [str(path.relative_to(CONFIGS)) for path in RECIPES]


def test_there_are_recipes_of_every_stage() -> None:
    assert {path.stem for path in RECIPES} >= set(STAGES)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_recipe_builds_and_comes_back_from_json(path: Path) -> None:
    recipe = load_recipe(str(path))
    assert type(recipe) in STAGES.values()
    text = json.dumps(recipe_to_json(recipe))
    assert recipe_from_json(json.loads(text)) == recipe
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}


@pytest.mark.parametrize("family", sorted({path.parent.name for path in RECIPES}))
def test_stages_of_a_family_fit_each_other(family: str) -> None:
    """The prior and the decoder are written for the CLIP beside them."""
    found = {p.stem: load_recipe(str(p)) for p in RECIPES if p.parent.name == family}
    models = {stage: recipe.model for stage, recipe in found.items()}
    clip, decoder = models["clip"], models["decoder"]
    for stage in ("prior", "ar_prior", "linear_prior", "one_step_prior", "decoder"):
        if stage not in found:  # the cheap priors have no size in the paper
            continue
        assert models[stage].embedding_width == clip.embedding_width
        assert found[stage].clip == found["decoder"].clip
        if hasattr(models[stage], "text_width"):
            assert models[stage].text_width == clip.text.width
            assert models[stage].context_length == clip.context_length
    assert clip.context_length == decoder.text.context_length
    assert decoder.text.vocab_size >= found["clip"].tokenizer.vocab_size


def test_defaults_come_back_too() -> None:
    needed: dict[str, dict[str, Any]] = {
        "clip": {"data": DataConfig(image_size=224)},
        "classifier": {"classes": tuple(f"class {i}" for i in range(1000))},
    }
    for stage, cls in STAGES.items():
        recipe: Any = cls(**needed.get(stage, {}))
        assert stage_of(recipe) == stage
        assert recipe_from_json(json.loads(json.dumps(recipe_to_json(recipe)))) == recipe


def edited(stage: str, path: str, value: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(recipe_to_json(toys.recipe(stage))))
    part = data
    *parents, name = path.split(".")
    for parent in parents:
        part = part[parent]
    part[name] = value
    return data


@pytest.mark.parametrize(
    ("stage", "path", "value"),
    [
        ("clip", "stepz", 3),
        ("clip", "optim.lr", 0.1),
        ("decoder", "model.unet.chanels", 8),
        ("clip", "steps", "3"),
        ("clip", "steps", 3.5),
        ("clip", "steps", True),
        ("clip", "optim.learning_rate", "1e-3"),
        ("clip", "optim.schedule", "cosin"),
        ("clip", "log.tensorboard", 1),
        ("clip", "optim", 3),
        ("clip", "optim", None),
        ("clip", "seed", None),
        ("decoder", "model.unet.channel_mult", [1, "2"]),
        ("decoder", "model.unet.channel_mult", 2),
        ("decoder", "log.preview_prompts", [3]),
        ("prior", "model.transformer.mlp_width", "x"),
    ],
)
def test_typo_is_named(stage: str, path: str, value: Any) -> None:
    with pytest.raises(UserError) as found:
        recipe_from_json(edited(stage, path, value))
    assert path.split(".")[-1] in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("optim.learning_rate", 1, 1.0),  # JSON has one kind of number
        ("optim.clip_norm", None, None),
        ("optim.clip_norm", 2, 2.0),
        ("data.cache_dir", "x", "x"),
        ("data.concepts", ["a", "b"], ("a", "b")),
        ("data.concepts", [], ()),
        ("model.vision.mlp_width", 12, 12),
    ],
)
def test_value_is_read_as_its_type(path: str, value: Any, expected: Any) -> None:
    found: Any = recipe_from_json(edited("clip", path, value))
    for name in path.split("."):
        found = getattr(found, name)
    assert found == expected and type(found) is type(expected)


def test_a_field_that_an_old_config_lacks_takes_its_default() -> None:
    data = recipe_to_json(toys.recipe("prior"))
    del data["text_drop"], data["optim"]["b1"]
    found = recipe_from_json(data)
    assert isinstance(found, PriorRecipe)
    assert (found.text_drop, found.optim.b1) == (0.1, 0.9)


def test_checks_hold_for_configs_that_are_read() -> None:
    with pytest.raises(UserError, match=r"optim\.accumulate is 0"):
        recipe_from_json(edited("clip", "optim.accumulate", 0))


@pytest.mark.parametrize("stage", [None, "upscaler", 3, ["clip"]])
def test_unknown_stage(stage: Any) -> None:
    with pytest.raises(UserError, match=r"stage is .* in the config: .*clip, prior, .*decoder"):
        recipe_from_json(recipe_to_json(toys.recipe("clip")) | {"stage": stage})


def test_read_recipe_is_frozen_and_hashable() -> None:
    recipe = recipe_from_json(recipe_to_json(toys.recipe("clip")))
    assert isinstance(recipe, CLIPRecipe) and hash(recipe) == hash(toys.recipe("clip"))
    with pytest.raises(AttributeError):
        recipe.steps = 3  # type: ignore[misc]


@dataclass(frozen=True)
class Union:
    value: int | str | None = None
    choice: Literal["a", "b"] | None = None
    required: int = 0


def test_unions() -> None:
    for value in (3, "x", None):
        assert from_dict(Union, to_dict(Union(value))).value == value
    assert from_dict(Union, {"choice": "b"}).choice == "b"
    with pytest.raises(UserError, match="choice"):
        from_dict(Union, {"choice": "c"})


def test_a_list_finds_the_tuple_among_several_types() -> None:
    config = SamplerConfig(method="ddim", num_steps=(0, 400, 999), guidance_interval=(100, 900))
    assert from_dict(SamplerConfig, json.loads(json.dumps(to_dict(config)))) == config
