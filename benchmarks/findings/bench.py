"""What every finding shares: the model, an independent judge, held-out pictures, kept drawings.

Drawings are kept in a folder under what they were drawn from and with, so that a measurement that
was stopped goes on, and a changed model draws again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.evaluation.caption_match import clip_score
from unclip_jax.evaluation.decoder_scores import Questions, make_questions
from unclip_jax.evaluation.encoders import own_text_is_first
from unclip_jax.evaluation.features import Extractor, extract_features
from unclip_jax.evaluation.intervals import Estimate, mean_interval, share_interval
from unclip_jax.evaluation.kernel_distances import kid
from unclip_jax.evaluation.manifold import manifold_scores
from unclip_jax.evaluation.pictures import Pictures
from unclip_jax.generation.keys import image_keys
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.pipeline import UnCLIP

Row = dict[str, Any]
"""What was measured in one way of drawing: its name, and scores as [value, low, high]."""


@dataclass(frozen=True)
class Bench:
    """The material of all findings."""

    unclip: UnCLIP
    judge: UnCLIP
    """Its CLIP alone is asked; no stage was trained with it."""
    inception: Extractor
    pictures: Pictures
    """Held out from training; their captions are the prompts."""
    split: str
    folder: Path
    """For drawings."""
    say: Callable[[str], None]
    steps: int
    """Of the decoder."""
    guidance: float
    """Of the decoder, where a finding does not ask about it."""
    seed: int = 0

    @property
    def captions(self) -> tuple[str, ...]:
        """'LABEL, STYLE style' of each picture."""
        return self.pictures.captions

    @cached_property
    def how(self) -> SamplingConfig:
        """The model's own sampling with this bench's steps and guidance, and larger batches."""
        own = self.unclip.sampling
        decoder = replace(own.decoder, num_steps=self.steps, guidance_scale=self.guidance)
        return replace(own, decoder=decoder, batch_size=max(own.batch_size, 16))

    @cached_property
    def embeddings(self) -> np.ndarray:
        """[N, E] of the true pictures."""
        return self.unclip.encode_image(self.pictures.images)

    @cached_property
    def text(self) -> np.ndarray:
        """[N, E] of the captions."""
        return self.unclip.encode_text(self.captions)

    @cached_property
    def real(self) -> np.ndarray:
        """[N, D] Inception features of the true pictures."""
        return self.features("true", self.pictures.images)

    @cached_property
    def questions(self) -> Questions:
        """What the judge is asked about each prompt."""
        return make_questions(self.pictures.facts, range(len(self.captions)), self.seed)

    def with_guidance(self, scale: float) -> SamplingConfig:
        """`how` at another guidance scale of the decoder."""
        return replace(self.how, decoder=replace(self.how.decoder, guidance_scale=scale))

    def keep(self, name: str, made_of: Sequence[Any], make: Callable[[], np.ndarray]) -> np.ndarray:
        """`make()`, or what it made the last time of the same."""
        stages = [self.unclip.stage_id(stage) for stage in sorted(self.unclip.stages)]
        digest = hashlib.sha256()
        for part in (*stages, self.split, self.seed, *made_of):
            digest.update(part.tobytes() if isinstance(part, np.ndarray) else f"{part}\n".encode())
        path = self.folder / f"{name}-{digest.hexdigest()[:16]}.npy"
        if path.is_file():
            return np.load(path, allow_pickle=False)
        self.say(f"drawing {name}")
        made = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, made)
        path.with_suffix(".part").rename(path)
        return made

    def draw(
        self,
        name: str,
        embeddings: np.ndarray | None,
        how: SamplingConfig | None = None,
        texts: Sequence[str] | None = None,
        draw: int = 0,
        x_T: np.ndarray | None = None,
    ) -> np.ndarray:
        """A picture for every prompt: [N, S, S, 3] uint8.

        Args:
            embeddings: [N, E] image embeddings; None draws from the captions alone, as GLIDE.
            texts: N captions; None are the prompts.
            draw: another one is drawn with other noise.
        """
        how, texts = how or self.how, list(texts or self.captions)
        keys = image_keys(self.seed, range(draw * len(texts), (draw + 1) * len(texts)))

        def make() -> np.ndarray:
            return self.unclip.decode(embeddings, texts, keys, how, x_T=x_T)

        given = [part for part in (embeddings, x_T) if part is not None]
        return self.keep(name, [*given, texts, draw, asdict(how)], make)

    def draw_prior(self, prior: str, draw: int = 0, candidates: int = 1) -> np.ndarray:
        """An image embedding for every prompt: [N, E]."""
        how = replace(self.how, num_candidates=candidates)
        keys = image_keys(
            self.seed, range(draw * len(self.captions), (draw + 1) * len(self.captions))
        )
        return self.keep(
            f"embedding-{prior}-{candidates}",
            [draw, prior, candidates, self.captions, asdict(how.prior)],
            lambda: self.unclip.sample_prior(self.captions, keys, how, prior),
        )

    def features(self, name: str, images: np.ndarray) -> np.ndarray:
        """[N, D] Inception features."""
        return self.keep(
            f"features-{name}", [images], lambda: extract_features(self.inception, iter(images))
        )

    def score(self, name: str, draws: Sequence[np.ndarray]) -> Row:
        """Every score of one way of drawing.

        Args:
            draws: one array or more of [N, S, S, 3], a picture for each prompt in each; two or more
                also have a diversity.
        """
        features = [self.features(f"{name}-{i}", images) for i, images in enumerate(draws)]
        judged = [self.judge.encode_image(images) for images in draws]
        manifold = manifold_scores(np.concatenate(features), self.real, seed=self.seed)
        embeddings = np.stack(judged, axis=1)
        asked = self.questions
        found = {
            "kid": _times(1000, kid(np.concatenate(features), self.real)),
            "precision": manifold.precision,
            "recall": manifold.recall,
            "density": manifold.density,
            "coverage": manifold.coverage,
            "r_precision": self._share(embeddings, asked.captions),
            "thing": self._share(embeddings, asked.things),
            "style": self._share(embeddings, asked.styles),
            "clip_score": clip_score(
                np.concatenate(judged), np.tile(self._judge_text, (len(draws), 1)), self.seed
            ),
        }
        if len(draws) > 1:
            apart = np.linalg.norm(features[0].astype(np.float64) - features[1], axis=1)
            found["diversity"] = mean_interval(apart, self.seed)
        return {"name": name, **{key: interval(one) for key, one in found.items()}}

    @cached_property
    def _judge_text(self) -> np.ndarray:
        return self.judge.encode_text(self.captions)

    def _share(self, embeddings: np.ndarray, texts: Sequence[Sequence[str]]) -> Estimate:
        return share_interval(own_text_is_first(self.judge, embeddings, texts).reshape(-1))

    def mean(self, values: np.ndarray) -> list[float]:
        """The mean of independent rows as it stands in the results."""
        return interval(mean_interval(values, self.seed))


def interval(one: Estimate) -> list[float]:
    """[value, low, high], as scores stand in the results."""
    return [one.value, one.low, one.high]


def _times(scale: float, one: Estimate) -> Estimate:
    return Estimate(scale * one.value, scale * one.low, scale * one.high)
