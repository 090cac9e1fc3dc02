"""unclip export into a folder that is there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.room import no_room
from tests.training import toys
from unclip_jax.cli.export import main
from unclip_jax.errors import UserError
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, save_stage


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest stage there is, with random weights."""
    recipe = toys.recipe("classifier")
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
    params = jax.tree.map(jnp.asarray, toys.random_like(shapes))
    folder = tmp_path_factory.mktemp("stages") / "classifier"
    save_stage(Stage(recipe, params, None, 3, "none"), folder, "float32")
    return folder


def sampling(model: Path) -> dict[str, Any]:
    return json.loads((model / "sampling.json").read_text())


def test_what_is_not_given_stays(classifier: Path, tmp_path: Path) -> None:
    model, export = tmp_path / "model", ["--classifier", str(classifier), "--out"]
    main([*export, str(model)])
    first = sampling(model)
    assert first["decoder"]["num_steps"] == 50 and first["decoder"]["guidance_scale"] == 3
    assert first["prior"]["num_steps"] == 64 and first["prior"]["variance"] == "trained"
    main([*export, str(model), "--steps", "7", "--prior-guidance", "2", "--upsample-steps", "9"])
    changed = sampling(model)
    assert changed["upsampler_256"]["num_steps"] == changed["upsampler_1024"]["num_steps"] == 9
    main([*export, str(model), "--batch-size", "3"])
    last = sampling(model)
    assert last["batch_size"] == 3 and {**last, "batch_size": 8} == changed
    assert last["decoder"] == {**first["decoder"], "num_steps": 7}
    assert last["prior"] == {**first["prior"], "guidance_scale": 2}


def test_a_disk_that_is_full_spoils_nothing(classifier: Path, tmp_path: Path) -> None:
    """No file may grow beyond 1000 bytes here: the weights' library meets it in the middle."""
    model = tmp_path / "model"
    main(["--classifier", str(classifier), "--out", str(model)])
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    for out in (model, tmp_path / "new"):
        message = r"cannot write .*safetensors \(File too large\)"
        with no_room(1000), pytest.raises(UserError, match=message):
            main(["--classifier", str(classifier), "--out", str(out)])
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    assert list((tmp_path / "new").iterdir()) == []


def test_a_damaged_sampling_file_is_named(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "sampling.json").write_text('{"prior": ')
    with pytest.raises(UserError, match=r"sampling.json cannot be read"):
        main(["--classifier", str(classifier), "--out", str(tmp_path)])
