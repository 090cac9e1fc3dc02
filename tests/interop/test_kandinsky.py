"""Kandinsky's priors: diffusers' folders of 2.1 and 2.2, and 2.1's own file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.clip_models import live
from tests.interop.comparison import assert_same_trees, random_params, run
from tests.interop.karlo_models import Tiny, make_folder
from unclip_jax.config import from_dict
from unclip_jax.errors import UserError
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.interop.clip_stage import clip_config
from unclip_jax.interop.comparison.karlo import compare_karlo
from unclip_jax.interop.comparison.karlo_reference import record_karlo
from unclip_jax.interop.comparison.rows import table
from unclip_jax.interop.detect import detect
from unclip_jax.interop.foreign_stage import ForeignModel
from unclip_jax.interop.karlo.diffusers_folder import open_diffusers_folder
from unclip_jax.interop.karlo.keys import prior_keys
from unclip_jax.interop.karlo.original_files import Hyperparameters, open_original_files
from unclip_jax.interop.tensors import Tensors, from_arrays, with_prefix
from unclip_jax.interop.torch_archive import write_torch_archive
from unclip_jax.interop.transfer import export_tensors
from unclip_jax.models.prior import DiffusionPrior, PriorConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage

FOLDERS = {
    "2.1": Tiny(
        seed=3, embedding=12, context=11, prior=(2, 10, 2), prior_clip=10.0, has_image_encoder=True
    ),
    "2.2": Tiny(
        seed=4, embedding=20, context=9, prior=(3, 4, 3), prior_clip=10.0, has_image_encoder=True
    ),
}
"""2.2 has embeddings wider than its prior is relative to 2.1's: 1280 beside 2048, not 768."""
PARTS_OF_KARLO = ("decoder", "text_proj", "decoder_scheduler", "super_res_first", "super_res_last")


@pytest.fixture(scope="module", autouse=True)
def highest_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As on the hub: prior, scheduler, both encoders, tokenizer and image processor."""
    live("diffusers")
    made = {}
    for name, tiny in FOLDERS.items():
        folder = tmp_path_factory.mktemp("kandinsky") / name
        make_folder(tiny, folder, scheduler_of_prior="scheduler")
        for part in (*PARTS_OF_KARLO, "super_res_scheduler"):
            shutil.rmtree(folder / part)
        (folder / "feature_extractor").rename(folder / "image_processor")
        made[name] = folder
    return made


@pytest.mark.parametrize("name", FOLDERS)
def test_a_prior_agrees_with_diffusers(name: str, folders: dict[str, Path]) -> None:
    tiny, folder = FOLDERS[name], folders[name]
    assert detect(folder) == "karlo"
    trace = record_karlo(folder, tiny.tokenizer, ["a red apple"], (5, 1, 1), 0)
    model = open_diffusers_folder(folder, "diffusers")
    assert set(model.stages) == {"prior"}
    rows = list(compare_karlo(model, trace, lambda name: model.stages[name].load(None, "")))
    assert all(row.passes for row in rows), table(rows)
    assert "prior: image embedding" in {row.name for row in rows}
    sampling = from_dict(SamplingConfig, model.sampling)
    assert sampling.prior.limit == 10.0
    assert sampling.prior.guidance_scale == 4.0


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_the_own_file_is_the_same_prior(
    prefix: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["2.1"]
    expected = open_diffusers_folder(folder).load()["prior"]
    write_original(expected, tmp_path, prefix)
    model = open_own_files(tmp_path, folder)
    assert set(model.stages) == {"prior"}
    found = model.load()["prior"]
    assert found.recipe == expected.recipe
    assert_same_trees(found.params, expected.params)
    assert found.statistics is not None and expected.statistics is not None
    np.testing.assert_array_equal(found.statistics.mean, expected.statistics.mean)
    np.testing.assert_array_equal(found.statistics.deviation, expected.statistics.deviation)


def test_the_own_file_may_be_half_precision(folders: dict[str, Path], tmp_path: Path) -> None:
    """`prior_fp16.ckpt` is what was published."""
    folder = folders["2.1"]
    expected = open_diffusers_folder(folder).load()["prior"]
    write_original(expected, tmp_path, "", np.float16)
    model = open_own_files(tmp_path, folder)
    rounded = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), expected.params)
    assert_same_trees(model.load()["prior"].params, rounded)


def test_a_prior_for_another_clip_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    write_original(open_diffusers_folder(folders["2.1"]).load()["prior"], tmp_path, "")
    with pytest.raises(UserError, match="embeddings of 12, the CLIP given makes 20"):
        open_own_files(tmp_path, folders["2.2"])


def test_pictures_are_prepared_as_its_image_processor_says(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["2.1"], tmp_path / "copy"))
    path = folder / "image_processor" / "preprocessor_config.json"
    data: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"image_mean": [0.5, 0.25, 0.125]}))
    assert clip_config(open_diffusers_folder(folder).clip).image_mean == (0.5, 0.25, 0.125)


FULL_SIZE = {"2.1": (768, 1_022_030_080), "2.2": (1280, 1_026_225_920)}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_published_priors_have_this_many_parameters(name: str) -> None:
    width, count = FULL_SIZE[name]
    model = PriorConfig(width, width, 77, TransformerConfig(2048, 20, 32), 1.0, is_whitened=True)
    abstract = jax.eval_shape(lambda: init_params(PriorRecipe(model=model), jax.random.key(0)))
    # The statistics are parameters there.
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) + 2 * width == count


def test_captions_may_be_wider_than_embeddings() -> None:
    """A CLIP whose states are wider than what it projects them to: ours takes both widths."""
    model = PriorConfig(6, 10, 5, TransformerConfig(8, 1, 2), 1.0, is_whitened=True)
    recipe = PriorRecipe(model=model)
    params = random_params(jax.eval_shape(lambda: init_params(recipe, jax.random.key(0))))
    state = export_tensors(prior_keys(model, "karlo"), params)
    assert state["text_enc_proj.weight"].shape == (8, 10)
    assert state["text_emb_proj.weight"].shape == (8, 6)
    rng = np.random.default_rng(0)
    x, text = rng.standard_normal((2, 2, 6)).astype(np.float32)
    states = rng.standard_normal((2, 5, 10)).astype(np.float32)
    given = (x, jnp.array([1, 2]), text, states, np.ones((2, 5), bool))
    assert run(lambda p: DiffusionPrior(model).apply({"params": p}, *given), params).shape == (2, 6)


def test_a_scheduler_that_is_no_unclips_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["2.1"], tmp_path / "copy"))
    path = folder / "scheduler" / "scheduler_config.json"
    data: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"beta_schedule": "linear"}))
    with pytest.raises(UserError, match="not a process of UnCLIPScheduler"):
        open_diffusers_folder(folder)


def open_own_files(files: Path, folder: Path) -> ForeignModel:
    """With the CLIP of the folder."""
    clip, tokenizer = folder / "text_encoder", folder / "tokenizer"
    return open_original_files(files, clip, given=Hyperparameters(2), tokenizer=tokenizer)


def write_original(stage: Stage, folder: Path, prefix: str, dtype: Any = np.float32) -> None:
    """Kandinsky 2.1's prior and statistics in its own naming."""
    recipe: Any = stage.recipe
    statistics: Any = stage.statistics

    def stored(tensors: Tensors) -> Tensors:
        return from_arrays({k: np.asarray(t.read(), dtype) for k, t in tensors.items()})

    tensors = stored(export_tensors(prior_keys(recipe.model, "karlo"), stage.params))
    write_torch_archive(folder / "prior_fp16.ckpt", with_prefix(tensors, prefix))
    pair = from_arrays({"mean": statistics.mean, "deviation": statistics.deviation})
    write_torch_archive(folder / "ViT-L-14_stats.th", (pair["mean"], pair["deviation"]))
