"""Labels, templates and captions on a tiny random CLIP."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from unclip_jax.clip_tools.zero_shot import embed_labels
from unclip_jax.errors import UserError
from unclip_jax.models.clip import CLIP
from unclip_jax.pipeline import UnCLIP

LABELS = ("red", "a blue car", "tree")
TEMPLATES = ("{}", "a {} here")


def photos(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8) for i in range(count)]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_an_ensemble_is_the_unit_mean_of_unit_embeddings(clip: UnCLIP) -> None:
    found = embed_labels(clip, LABELS, TEMPLATES)
    for row, label in zip(found, LABELS, strict=True):
        sentences = unit(clip.encode_text([label, f"a {label} here"]))
        np.testing.assert_allclose(row, unit(sentences.mean(axis=0)), atol=1e-6)
    one = embed_labels(clip, LABELS, ("{}",))
    np.testing.assert_allclose(one, unit(clip.encode_text(LABELS)), atol=1e-6)
    assert np.abs(one - found).max() > 1e-3


def test_probabilities_are_those_of_clip_itself(clip: UnCLIP) -> None:
    """With one bare template they are the softmax of the logits that CLIP is trained with."""
    found = clip.classify(photos(), LABELS, ("{}",))
    side = clip.clip.recipe.model.image_size  # pyright: ignore
    squares = np.stack([clip_square(photo, side) for photo in photos()])
    model = CLIP(clip.clip.recipe.model)  # pyright: ignore
    out = jax.jit(model.apply)(
        {"params": clip.clip.params}, squares / 127.5 - 1, clip.tokenizer(LABELS)
    )
    logits = np.asarray(out["logit_scale"] * out["image"] @ out["text"].T)  # pyright: ignore
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)
    assert found.probabilities.shape == (3, 3)


def clip_square(photo: np.ndarray, side: int) -> np.ndarray:
    from unclip_jax.data.images import resize_and_crop

    return resize_and_crop(photo, side).astype(np.float32)


def test_the_best_come_first(clip: UnCLIP) -> None:
    found = clip.classify(photos(), LABELS)
    for row, best in enumerate(found.best(2)):
        assert [one.text for one in best] == [
            LABELS[place] for place in np.argsort(-found.probabilities[row])[:2]
        ]
        assert best[0].probability >= best[1].probability
    assert [len(row) for row in found.best(99)] == [3, 3, 3]


def test_captions_that_do_not_fit_never_raise_the_rank_of_one(clip: UnCLIP) -> None:
    photo, captions = photos(1)[0], [f"caption {number}" for number in range(6)]
    few = clip.rank_captions(photo, captions[:4])
    many = clip.rank_captions(photo, captions + captions[:2])  # the second of equals is dropped
    assert [one.text for one in many if one.text in captions[:4]] == [one.text for one in few]
    assert len(many) == 6 and sum(one.probability for one in many) == pytest.approx(1, rel=1e-5)
    for one in few:
        same = next(other for other in many if other.text == one.text)
        assert same.cosine == pytest.approx(one.cosine, abs=1e-6)
        assert same.probability <= one.probability


def test_mistakes_are_named(clip: UnCLIP) -> None:
    with pytest.raises(UserError, match="labels: 1 given; give two or more"):
        clip.classify(photos(), ["red"])
    with pytest.raises(UserError, match="label 'red' is given twice"):
        clip.classify(photos(), ["red", "blue", "red"])
    with pytest.raises(UserError, match="label 2 is empty"):
        clip.classify(photos(), ["red", " "])
    with pytest.raises(UserError, match=r"template 'a photo' has no \{\} for the label"):
        clip.classify(photos(), LABELS, ["{}", "a photo"])
    with pytest.raises(UserError, match="there is no template"):
        clip.classify(photos(), LABELS, [])
    with pytest.raises(UserError, match="there is no picture"):
        clip.classify([], LABELS)
    with pytest.raises(UserError, match="there is no caption"):
        clip.rank_captions(photos(1)[0], [])


def test_braces_in_labels_are_text(clip: UnCLIP) -> None:
    """A label is put in, never formatted: it cannot reach into Python's objects."""
    found = clip.classify(photos(1), ["{0.__class__}", "{}"], ["a {} {}"])
    assert sorted(one.text for one in found.best()[0]) == ["{0.__class__}", "{}"]


def test_damaged_weights_are_said(clip: UnCLIP) -> None:
    params = {**clip.clip.params}
    params["text"] = {
        **params["text"],
        "projection": {"kernel": params["text"]["projection"]["kernel"] * np.nan},
    }
    broken = UnCLIP({"clip": replace(clip.clip, params=params)}, clip.sampling)
    with pytest.raises(UserError, match="not finite: its weights are damaged"):
        broken.rank_captions(photos(1)[0], ["a"])
