"""The report of models whose answers are known: one that knows everything, one that guesses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unclip_jax.cli.evaluate import main
from unclip_jax.data.captions import EmojiFacts, caption_with_style
from unclip_jax.errors import UserError
from unclip_jax.evaluation.pictures import Pictures
from unclip_jax.evaluation.report import Material, evaluate, save_evaluation
from unclip_jax.generation.sampling import SamplingConfig

STYLES = ("noto", "twemoji", "flat", "3d")
LABELS = tuple(f"thing {number}" for number in range(30))
CAPTIONS = tuple(caption_with_style(label, style) for label in LABELS for style in STYLES)


@dataclass
class Oracle:
    """A model in which the first two bytes of a picture are the number of its caption.

    The embedding of a caption is its own axis, and the prior and the decoder make no mistake when
    the decoder is guided; unguided it draws everything in the first style.
    """

    stages: Any = field(
        default_factory=lambda: {
            "clip": SimpleNamespace(step=1, clip_id="c0ffee"),
            "prior": SimpleNamespace(step=2),
            "decoder": SimpleNamespace(step=3),
        }
    )
    sampling: SamplingConfig = SamplingConfig()
    name: str = "oracle"

    @property
    def clip(self) -> Any:
        return self.stages["clip"]

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.eye(len(CAPTIONS))[[CAPTIONS.index(text) for text in texts]]

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        return np.eye(len(CAPTIONS))[images[:, 0, 0, 0]]

    def sample_prior(self, texts: Sequence[str], keys: Any, how: SamplingConfig) -> np.ndarray:
        assert len(texts) == len(keys)
        assert how.num_candidates in (1, 2)
        return self.encode_text(texts)

    def text_to_image(
        self, prompts: Sequence[str], num_images: int, seed: int, sampling: SamplingConfig
    ) -> Any:
        numbers = np.repeat([CAPTIONS.index(prompt) for prompt in prompts], num_images)
        if sampling.decoder.guidance_scale == 1.0:
            numbers = numbers // 4 * 4
        return SimpleNamespace(images=draw(numbers))


class Blind(Oracle):
    """Every embedding is the same."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 1))

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        return np.ones((len(images), 1))


def draw(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    images = np.zeros((len(numbers), 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = numbers
    return images


def pictures(numbers: Sequence[int]) -> Pictures:
    facts = tuple(
        EmojiFacts(LABELS[n // 4], LABELS[n // 4], STYLES[n % 4], (), "objects", "", "", "train")
        for n in numbers
    )
    return Pictures(draw(numbers), facts)


MATERIAL = Material(
    {"test_cells": pictures([1, 6, 7, 20]), "test": pictures([50, 51]), "train": pictures([3, 9])},
    pictures(range(120)),
    prompts=(0, 5, 10, 15),
)


def run(model: Oracle, material: Material = MATERIAL, judge: Oracle | None = None) -> Any:
    said: list[str] = []
    result, grids = evaluate(
        model,  # type: ignore[arg-type]
        material,
        seed=0,
        per_prompt=4,
        say=said.append,
        judge=judge,  # type: ignore[arg-type]
    )
    assert said
    return result, grids


def test_perfect_model() -> None:
    result, grids = run(Oracle())
    cells = result.retrieval[0]
    assert (cells.split, cells.pictures, cells.candidates) == ("test_cells", 4, 4)
    assert cells.image_to_text_r1 == cells.text_to_image_r1 == cells.style_r1 == 1.0
    assert cells.chance_r1 == 1 / 4
    assert cells.label_chance_r1 == (1 + 2 + 2 + 1) / 16  # pictures 6 and 7 share their label
    prior = result.prior
    assert prior.cosine == prior.cosine_one_draw == prior.cosine_text == prior.r1 == 1.0
    assert prior.cosine_other == prior.cosine_pictures == prior.cosine_other_text == 0.0
    assert prior.cosine_to_text == 1.0 and prior.cosine_gain == 0.0
    assert prior.intervals["cosine"] == (1.0, 1.0)
    assert prior.intervals["r1"] == pytest.approx((0.51, 1.0), abs=0.01)  # Wilson, 4 of 4
    true, unguided, guided = result.decoder.scores
    assert (true.guidance, unguided.guidance, guided.guidance) == (None, 1.0, 3.0)
    assert true.caption_r1 == guided.caption_r1 == guided.style_r1 == guided.thing_r1 == 1.0
    # Unguided, only the first prompt has the style that is drawn.
    assert unguided.style_r1 == unguided.caption_r1 == 1 / 4
    assert unguided.recognised == (4, 0, 0, 0)
    # Four prompts, the true picture and four generated ones each, 4 pixels and 2 between.
    assert {scale: grid.shape for scale, grid in grids.items()} == {
        1.0: (4 * 6 + 2, 5 * 6 + 2, 3),
        3.0: (4 * 6 + 2, 5 * 6 + 2, 3),
    }


def test_blind_model_scores_nothing() -> None:
    result, _ = run(Blind())
    for split in result.retrieval:
        assert split.image_to_text_r1 == split.text_to_image_r1 == split.style_r1 == 0.0
    assert result.prior.r1 == result.prior.r1_text == 0.0
    assert result.prior.cosine == result.prior.cosine_pictures == 1.0
    assert all(score.caption_r1 == 0.0 for score in result.decoder.scores)


def test_another_clip_judges_the_pictures_and_nothing_else(tmp_path: Path) -> None:
    stages = {"clip": SimpleNamespace(step=9, clip_id="another0one1here")}
    result, grids = run(Blind(), replace(MATERIAL, known_split="test_cells"), Oracle(stages))
    assert result.retrieval[0].image_to_text_r1 == 0.0  # the model's own CLIP is as blind as ever
    assert result.decoder.scores[-1].caption_r1 == 1.0
    assert (result.decoder.judge, result.decoder.split) == ("another0one1here", "test_cells")
    text = save_evaluation(tmp_path, result, grids)
    assert "The judge is another CLIP (another0one1)" in text and "`test_cells`" in text
    own = save_evaluation(tmp_path, *run(Oracle()))
    assert "The judge is the model's own CLIP" in own and "another CLIP" not in own


def test_unguided_model_is_drawn_once() -> None:
    sampling = SamplingConfig()
    plain = replace(sampling, decoder=replace(sampling.decoder, guidance_scale=1.0))
    result, grids = run(Oracle(sampling=plain))
    assert [score.guidance for score in result.decoder.scores] == [None, 1.0]
    assert list(grids) == [1.0]


def test_files(tmp_path: Path) -> None:
    result, grids = run(Oracle())
    text = save_evaluation(tmp_path / "new" / "eval", result, grids)
    names = {path.name for path in (tmp_path / "new" / "eval").iterdir()}
    assert names == {
        "evaluation.json",
        "evaluation.md",
        "samples_guidance_1.png",
        "samples_guidance_3.png",
    }
    data = json.loads((tmp_path / "new" / "eval" / "evaluation.json").read_text())
    assert data["decoder"]["prompts"][1] == "thing 1, twemoji style"
    assert data["steps"] == {"clip": 1, "prior": 2, "decoder": 3}
    assert "| thing 1, twemoji style | 0/4 | 4/4 |" in text
    assert "| test_cells | 4 | 4 | 100.0 % |" in text
    assert "| text embedding itself | 1.000 (1.000 to 1.000) | 100.0 % (51.0 to 100.0) |" in text
    assert set(data["prior"]["intervals"]) < set(data["prior"])
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert save_evaluation(tmp_path / "again", *run(Oracle())) == text


def test_clip_alone(tmp_path: Path) -> None:
    alone = Oracle({"clip": Oracle().clip})
    result, grids = run(alone, replace(MATERIAL, known=None, prompts=()))
    assert result.prior is None and result.decoder is None and not grids
    text = save_evaluation(tmp_path, result, grids)
    assert "The prior was not measured." in text
    assert "The decoder was not measured." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-prompts", "0"], "--num-prompts is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--prior", "runs/prior"], "name --clip"),
        (["--clip", "c", "--decoder", "d"], "name --prior too"),
        (["--prompts", "missing.txt"], "missing.txt does not exist"),
        (["--nonsense", "1"], "nonsense"),
        (["--split", "tset"], "'tset' is unknown; did you mean"),
        (["--generated", "g", "--real", "r", "--judge", "j"], "--judge is for a model"),
        (["--clip", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        main(arguments)
    assert "\n" not in str(error.value)


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "eval").write_text("")
    with pytest.raises(UserError, match="is a file"):
        main(["--out", str(tmp_path / "eval")])
