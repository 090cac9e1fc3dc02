"""One pass over a data set: the same pairs in batches of any size, from pictures or a store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.training import toys
from unclip_jax.cli import embed
from unclip_jax.config import DataConfig
from unclip_jax.data.embedding_store import EmbeddingStore
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.errors import UserError
from unclip_jax.models.clip import CLIP
from unclip_jax.training.encoded_pairs import first_pairs, make_pair_reader, open_pairs
from unclip_jax.training.objectives.conditions import Pairs
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, save_stage, weights_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_pictures(tmp_path_factory.mktemp("pairs") / "pictures").parent


@pytest.fixture(scope="module")
def clip() -> Stage:
    recipe = toys.clip_recipe()
    params = toys.random_like(jax.eval_shape(lambda: init_params(recipe, jax.random.key(0))))
    tokenizer = train_bpe(["a red circle", "a blue bar"], 600, 12)
    return Stage(recipe, params, tokenizer, 0, weights_id(params))


def read_all(clip: Stage, data: DataConfig, rows: int, shuffle: bool = False) -> list[Pairs]:
    read = make_pair_reader(
        clip.recipe.model, clip.params, clip.tokenizer, rows=rows, shuffle=shuffle
    )
    return list(read(open_pairs(data, clip.clip_id, clip.tokenizer), data))


def joined(batches: list[Pairs]) -> dict[str, np.ndarray]:
    names = ("image", "text", "states", "mask")
    return {name: np.concatenate([getattr(pairs, name) for pairs in batches]) for name in names}


def test_pairs_are_what_clip_says_of_each_picture(folder: Path, clip: Stage) -> None:
    data = DataConfig(source=str(folder / "pictures"), image_size=16)
    batches = read_all(clip, data, 5)
    assert [len(pairs.image) for pairs in batches] == [5, 5, 2]
    found, model = joined(batches), CLIP(clip.recipe.model)
    for row, path in enumerate(sorted((folder / "pictures").glob("*.png"))):
        pixels = np.asarray(Image.open(path), np.float32)[None] / 127.5 - 1
        tokens = clip.tokenizer([path.with_suffix(".txt").read_text().strip()])
        image = model.apply({"params": clip.params}, pixels, method=CLIP.encode_image)
        text, states = model.apply({"params": clip.params}, tokens, method=CLIP.encode_text)
        for name, vector in (("image", image), ("text", text)):
            expected = np.asarray(vector, np.float64)[0]
            expected /= np.linalg.norm(expected)
            np.testing.assert_allclose(found[name][row], expected, atol=1e-5)
        np.testing.assert_allclose(found["states"][row], states[0], atol=1e-4)
        # The end token has the highest id; what follows is padding.
        assert found["mask"][row].sum() == np.argmax(tokens[0]) + 1


def test_batches_do_not_matter_and_the_shuffle_is_fixed(folder: Path, clip: Stage) -> None:
    (folder / "pictures" / "red_bar.txt").write_text("a red bar\na bar in red\n")
    data = DataConfig(source=str(folder / "pictures"), image_size=16)
    plain = joined(read_all(clip, data, 12))
    drawn = joined(read_all(clip, data, 5, shuffle=True))
    again = joined(read_all(clip, data, 12, shuffle=True))
    for name, array in drawn.items():
        np.testing.assert_allclose(array, again[name], atol=1e-5)
    assert not np.allclose(drawn["image"], plain["image"], atol=1e-3)
    order = [np.abs(plain["image"] - row).max(axis=1).argmin() for row in drawn["image"]]
    assert sorted(order) == list(range(12))


def test_stored_embeddings_give_the_same_pairs(folder: Path, clip: Stage) -> None:
    data = DataConfig(source=str(folder / "pictures"), image_size=16)
    save_stage(clip, folder / "clip", "float32")
    options = ["--out", str(folder / "store"), "--data.source", data.source, "--dtype", "float32"]
    assert embed.main([str(folder / "clip"), *options, "--data.image-size", "16"]) == 0
    stored = replace(data, embeddings=str(folder / "store"))
    assert isinstance(open_pairs(stored, clip.clip_id, clip.tokenizer), EmbeddingStore)
    expected = joined(read_all(clip, data, 5))
    for name, array in joined(read_all(clip, stored, 5)).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5)
    with pytest.raises(UserError, match="made with CLIP"):
        open_pairs(stored, "0123456789abcdef", clip.tokenizer)


@pytest.mark.parametrize(
    ("count", "sizes"), [(3, [3]), (5, [5]), (8, [5, 3]), (12, [5, 5, 2]), (99, [5, 5, 2])]
)
def test_first_pairs_stop_where_asked(count: int, sizes: list[int]) -> None:
    rows = np.arange(12.0)[:, None]
    parts = [Pairs(rows[i : i + 5], rows[i : i + 5], rows, rows) for i in (0, 5, 10)]
    read = []

    def batches():
        for number, pairs in enumerate(parts):
            read.append(number)
            yield pairs

    found = list(first_pairs(batches(), count))
    assert [len(pairs.text) for pairs in found] == sizes
    assert len(read) == len(sizes)  # nothing is read for nothing
    np.testing.assert_array_equal(
        np.concatenate([pairs.image for pairs in found]), rows[: min(count, 12)]
    )
