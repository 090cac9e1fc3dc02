"""What an index finds is what numpy finds by comparing everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unclip_jax.clip_tools.encoding import encode_pictures, encode_texts
from unclip_jax.clip_tools.index import PictureIndex, open_index
from unclip_jax.clip_tools.index_writer import write_index
from unclip_jax.clip_tools.search import embed_query, nearest_rows
from unclip_jax.data.images import decode_image, picture_bytes, save_png
from unclip_jax.errors import UserError
from unclip_jax.evaluation.pictures import load_pictures
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.weights import load_clip


def stored(index: PictureIndex) -> np.ndarray:
    """Every row of an index."""
    return np.concatenate([index.embeddings(i) for i in range(len(index.manifest.shards))])


@pytest.mark.parametrize("k", [1, 3, 5, 7, 12, 50])
def test_rows_are_those_of_brute_force(k: int, index: Path) -> None:
    """In one shard or over several, the last of which is not full."""
    opened = open_index(index)
    assert [entry.rows for entry in opened.manifest.shards] == [5, 5, 2]
    queries = np.random.default_rng(0).standard_normal((4, opened.manifest.width))
    queries = queries.astype(np.float32)
    cosines, rows = nearest_rows(opened, queries, k)
    exact = queries @ stored(opened).T
    order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(cosines, np.take_along_axis(exact, order, 1), atol=1e-5)


def test_of_equals_the_first_comes_first(clip: UnCLIP, folder: Path, tmp_path: Path) -> None:
    picture = next(folder.glob("*.png")).read_bytes()
    for path in folder.glob("*.png"):
        path.write_bytes(picture)
    write_index(clip, folder, tmp_path / "index", shard_rows=5)
    hits = clip.search(tmp_path / "index", "anything", k=8)
    names = sorted(path.name for path in folder.glob("*.png"))
    assert [hit.name for hit in hits] == names[:8]


def test_a_picture_finds_itself(clip: UnCLIP, index: Path, folder: Path) -> None:
    opened = open_index(index)
    for path in sorted(folder.glob("*.png")):
        photo = decode_image(picture_bytes(path), name="a")
        hit = clip.search(opened, pictures=[photo], k=1)[0]
        assert hit.name == path.name and hit.path == path
        assert hit.cosine == pytest.approx(1, abs=1e-5)


def test_a_query_of_several_is_their_weighted_mean(clip: UnCLIP, folder: Path) -> None:
    photo = decode_image(picture_bytes(folder / "red_bar.png"), name="a")
    parts = np.concatenate([encode_texts(clip, ["a", "b"]), encode_pictures(clip, [photo])])
    total = parts[0] * 2 - parts[1] * 0.5 + parts[2]
    found = embed_query(clip, ["a", "b"], [photo], [2, -0.5, 1])
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-6)
    total = parts.sum(axis=0)
    found = embed_query(clip, ["a", "b"], [photo])
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-6)


def test_mistakes_are_named(clip: UnCLIP, index: Path) -> None:
    with pytest.raises(UserError, match="nothing to search for"):
        clip.search(index)
    with pytest.raises(UserError, match="2 weights for 1 texts and pictures"):
        clip.search(index, "a", weights=[1, 2])
    with pytest.raises(UserError, match="give finite numbers"):
        clip.search(index, "a", weights=[float("nan")])
    with pytest.raises(UserError, match="cancel each other out"):
        clip.search(index, ["a", "a"], weights=[1, -1])
    with pytest.raises(UserError, match="cancel each other out"):
        clip.search(index, "a", weights=[0])
    with pytest.raises(UserError, match="k is 0"):
        clip.search(index, "a", k=0)


def test_recall_on_emoji_is_that_of_numpy(tmp_path: Path) -> None:
    """The shipped CLIP and its own captions: the index names the same picture every time."""
    unclip = UnCLIP({"clip": load_clip("emoji")}, SamplingConfig(batch_size=16))
    pictures = load_pictures("test_cells", 64, limit=48)
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(pictures.images):
        save_png(tmp_path / "pictures" / f"{number:03d}.png", image)
    unclip.index(tmp_path / "pictures", tmp_path / "index", shard_rows=20)
    queries = encode_texts(unclip, pictures.captions)
    exact = (queries @ encode_pictures(unclip, pictures.images).T).argmax(axis=1)
    rows = nearest_rows(open_index(tmp_path / "index"), queries, 1)[1][:, 0]
    np.testing.assert_array_equal(rows, exact)
    assert np.mean(rows == np.arange(48)) > 0.5  # of 48 a guess finds one
