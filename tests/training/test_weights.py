"""A stage on disk: what is written comes back, and what is damaged is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.training import toys
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.errors import UserError
from unclip_jax.training import weights
from unclip_jax.training.loop import train
from unclip_jax.training.recipe import recipe_to_json
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import (
    Stage,
    flatten,
    load_clip,
    load_stage,
    save_stage,
    weights_id,
)


@pytest.fixture(scope="module")
def stage() -> Stage:
    recipe = toys.prior_recipe()
    params = toys.random_like(jax.eval_shape(lambda: init_params(recipe, jax.random.key(0))))
    tokenizer = train_bpe(["a red apple", "a blue book"], vocab_size=530, context_length=12)
    return Stage(recipe, params, tokenizer, 7, "0123456789abcdef")


def rounded(params: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype("f4"), params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip(dtype: Any, stage: Stage, tmp_path: Path) -> None:
    save_stage(stage, tmp_path / "prior", dtype)
    found = load_stage(tmp_path / "prior")
    assert (found.recipe, found.step, found.clip_id) == (stage.recipe, 7, stage.clip_id)
    texts = ["a red book", "Äpfel!"]
    np.testing.assert_array_equal(found.tokenizer(texts), stage.tokenizer(texts))
    expected = stage.params if dtype == "float32" else rounded(stage.params)
    jax.tree.map(np.testing.assert_array_equal, expected, found.params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.params)} == {"float32"}
    stored = load_file(tmp_path / "prior" / "model.safetensors")
    assert {array.dtype.name for array in stored.values()} == {dtype}
    assert stored.keys() == flatten(stage.params).keys()


def test_saving_again_replaces_the_files(stage: Stage, tmp_path: Path) -> None:
    save_stage(stage, tmp_path)
    first = (tmp_path / "model.safetensors").read_bytes()
    save_stage(stage, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == first
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        save_stage(stage, tmp_path)


def test_rounding_is_to_the_nearest(stage: Stage, tmp_path: Path) -> None:
    save_stage(stage, tmp_path)
    found = flatten(load_stage(tmp_path).params)
    for name, weight in flatten(stage.params).items():
        error = np.abs(found[name] - weight)
        assert (error <= np.abs(weight) * 2.0**-8).all()


def test_id_names_the_weights_in_either_precision(stage: Stage) -> None:
    name = weights_id(stage.params)
    assert name == weights_id(rounded(stage.params)) and len(name) == 16
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), stage.params)
    assert weights_id(half) == name
    other = dict(stage.params)
    other["query"] = other["query"] + 1
    assert weights_id(other) != name
    renamed = dict(stage.params)
    renamed["query2"] = renamed.pop("query")
    assert weights_id(renamed) != name


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return edit


def edit_weights(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        arrays = load_file(folder / "model.safetensors")
        change(arrays)
        save_file(arrays, folder / "model.safetensors")

    return edit


def cut(name: str, share: float) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return edit


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "half a config": (cut("config.json", 0.5), "config.json"),
    "a list as config": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json"),
    "newer format": (edit_config(format=2), "format 2"),
    "no step": (edit_config(step=...), "step"),
    "no clip": (edit_config(clip=...), "CLIP"),
    "no recipe": (edit_config(recipe=...), "stage is None"),
    "a list as recipe": (edit_config(recipe=[1]), "stage is None"),
    "unknown stage": (edit_config(recipe={"stage": "upscaler"}), "upscaler"),
    "unknown field": (edit_config(recipe={"stage": "prior", "model": {"hue": 1}}), "model.hue"),
    "wrong type": (edit_config(recipe={"stage": "prior", "steps": "9"}), "steps is '9'"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "half the weights": (cut("model.safetensors", 0.5), "model.safetensors"),
    "no header": (cut("model.safetensors", 0.0), "model.safetensors"),
    "a weight too few": (edit_weights(lambda a: a.pop("query")), "lacks a weight.*query"),
    "a weight too many": (edit_weights(lambda a: a.update(x=a["query"])), "does not belong.*x"),
    "another shape": (edit_weights(lambda a: a.update(query=a["query"][:3])), r"query.*\(3,\)"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "half a tokenizer": (cut("tokenizer.json", 0.5), "tokenizer.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / "prior"
    save_stage(stage, folder)
    damage, words = DAMAGE[name]
    damage(folder)
    with pytest.raises(UserError, match=words) as found:
        load_stage(folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_stage(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name} is neither a run nor an exported stage"):
        load_stage(tmp_path / name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("stages")
    data = {"source": str(toys.write_pictures(folder / "pictures"))}
    train(toys.recipe("clip", steps=2, data=data), folder / "clip")
    return folder / "clip"


def test_a_run_is_a_stage_and_exports_as_itself(run: Path, tmp_path: Path) -> None:
    stage = load_stage(run)
    assert stage.step == 2 and stage.clip_id == weights_id(stage.params)
    save_stage(stage, tmp_path / "clip")
    exported = load_stage(tmp_path / "clip")
    # Where the pictures were on this machine is nobody's business.
    expected = toys.changed(stage.recipe, data={"source": "pictures"})
    assert exported.recipe == expected != stage.recipe
    jax.tree.map(
        np.testing.assert_array_equal, rounded(jax.device_get(stage.params)), exported.params
    )
    # What was trained for the run fits what was exported from it.
    assert exported.clip_id == stage.clip_id == weights_id(exported.params)


def test_a_run_without_checkpoints(run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(UserError, match="no finished checkpoint"):
        load_stage(tmp_path)


@pytest.mark.parametrize(
    ("source", "exported"),
    [
        ("/home/joe/pictures", "pictures"),
        ("/home/joe/shards/{0..9}.tar", "{0..9}.tar"),
        ("tfds:/home/joe/squares/1.2.0", "tfds:1.2.0"),
        ("~joe/pictures/", "pictures"),
        ("C:\\Users\\joe\\pictures", "pictures"),
        ("emoji", "emoji"),
        ("data/pictures", "data/pictures"),
        ("tfds:squares:1.2.0", "tfds:squares:1.2.0"),
    ],
)
def test_an_export_names_no_place(source: str, exported: str) -> None:
    recipe = toys.recipe("prior", clip="/home/joe/clip", data={"source": source})
    found = weights.without_places(recipe_to_json(recipe))
    assert found["data"]["source"] == exported and found["clip"] == "clip"
    assert "joe" not in json.dumps(found)


def copy(run: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run, folder))


def test_a_run_whose_recipe_was_edited(run: Path, tmp_path: Path) -> None:
    """Another width in config.json must not load weights of the wrong shape."""
    folder = copy(run, tmp_path / "clip")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["recipe"]["model"]["embedding_width"] = 32
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"checkpoint.*does not fit") as found:
        load_stage(folder)
    assert "\n" not in str(found.value) and len(str(found.value)) < 600


def test_a_run_whose_checkpoint_lost_its_weights(run: Path, tmp_path: Path) -> None:
    import shutil

    folder = copy(run, tmp_path / "clip")
    shutil.rmtree(folder / "checkpoints" / "2" / "state")
    with pytest.raises(UserError, match=r"no undamaged checkpoint") as found:
        load_stage(folder)
    assert "\n" not in str(found.value) and len(str(found.value)) < 600


def test_a_shipped_name_stands_for_its_clip(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="weights of model 'emoji' are not here"):
        load_clip("emoji")
    save_stage(stage, tmp_path / "assets" / "models" / "emoji" / "clip")
    assert load_clip("emoji").clip_id == stage.clip_id
    with pytest.raises(UserError, match="neither a run nor an exported stage"):
        load_clip(tmp_path / "elsewhere")
