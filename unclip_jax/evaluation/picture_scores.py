"""A set of generated pictures beside real ones: every distance, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unclip_jax.data.images import resize_and_crop
from unclip_jax.errors import UserError
from unclip_jax.evaluation.counted import counted
from unclip_jax.evaluation.encoders import Say
from unclip_jax.evaluation.feature_cache import cached_features
from unclip_jax.evaluation.features import Extractor, extract_features
from unclip_jax.evaluation.frechet import fid
from unclip_jax.evaluation.intervals import Estimate, mean_interval
from unclip_jax.evaluation.kernel_distances import cmmd, kid, subset_kid
from unclip_jax.evaluation.manifold import DENSITY_K, manifold_scores
from unclip_jax.evaluation.memorisation import MemorisationScores, memorisation
from unclip_jax.evaluation.picture_sets import PictureSet
from unclip_jax.evaluation.similarity import WINDOW, paired_distance, paired_similarity, ssim

FEWEST = DENSITY_K + 1
"""Pictures of each set."""
KID_SCALE = 1000
NEIGHBOURS = 16
"""Likeliest copies that a report lists."""


@dataclass(frozen=True)
class Score:
    """A row of the report."""

    name: str
    features: str
    """Of which extractor; pixels for SSIM."""
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Neighbour:
    """A generated picture and the training picture nearest to it."""

    generated: str
    training: str
    ratio: float
    """Of their distance, see `memorisation.nearest_ratio`; 0 for a copy."""


@dataclass(frozen=True)
class PictureReport:
    """All that was measured, as it goes into evaluation.json."""

    generated: str
    num_generated: int
    real: str
    num_real: int
    train: str | None
    """The training pictures that copies were looked for in."""
    num_train: int
    paired: bool
    """Every generated picture has a real one of its name, which it was compared with."""
    extractors: dict[str, str]
    """What the features were computed with, by name."""
    seed: int
    scores: tuple[Score, ...]
    kid_of_subsets: dict[str, float]
    """The mean of KIDs of subsets and their standard deviation, times 1000, as papers print it;
    empty without Inception."""
    likeliest_copies: tuple[Neighbour, ...] = ()
    """By the features of the first extractor, the likeliest first; empty without `train`."""


def measure_pictures(
    generated: PictureSet,
    real: PictureSet,
    extractors: Sequence[Extractor],
    train: PictureSet | None = None,
    *,
    seed: int,
    say: Say,
) -> PictureReport:
    """Inception's features give FID and KID, CLIP's give CMMD; all others come from both.

    The features of all pictures are in memory (8 kB a picture), the pictures are not. Those of
    `real` and `train` are kept in the cache.

    Raises:
        UserError: too few pictures, or one that is damaged.
    """
    for one in (generated, real, *([] if train is None else [train])):
        if len(one) < FEWEST:
            raise UserError(f"{one.name} has {len(one)} pictures: give {FEWEST} or more")
    row_of = {name: row for row, name in enumerate(real.names)}
    partners = [row_of[name] for name in generated.names if name in row_of]
    paired = len(partners) == len(generated)
    scores: list[Score] = []
    subsets: dict[str, float] = {}
    copies: tuple[Neighbour, ...] = ()
    for extractor in extractors:
        say(f"{extractor.name}: {len(generated)} generated pictures")
        passing = counted(generated.pictures(), len(generated), extractor.name, say)
        mine = extract_features(extractor, passing)
        true = _features(extractor, real, say)
        known = None if train is None else _features(extractor, train, say)
        say(f"{extractor.name}: distances")
        found = _distances(extractor.name, mine, true, seed)
        if train is not None and known is not None:
            near = _memorisation(mine, known, true, seed)
            found |= _memorisation_scores(near)
            copies = copies or _likeliest_copies(near, generated, train)
        if paired:
            found["distance to the true picture"] = paired_distance(mine, true[partners], seed)
            found["cosine to the true picture"] = paired_similarity(mine, true[partners], seed)
        if extractor.name == "inception":
            part = subset_kid(mine, true, seed)
            subsets = {
                "mean": KID_SCALE * part.mean,
                "deviation": KID_SCALE * part.deviation,
                "subsets": part.subsets,
                "size": part.size,
            }
        scores += [_score(name, extractor.name, one) for name, one in found.items()]
    if paired:
        say("SSIM")
        scores.append(_score("SSIM", "pixels", _mean_ssim(generated, real, partners, seed)))
    return PictureReport(
        generated=generated.name,
        num_generated=len(generated),
        real=real.name,
        num_real=len(real),
        train=None if train is None else train.name,
        num_train=0 if train is None else len(train),
        paired=paired,
        extractors={extractor.name: extractor.key for extractor in extractors},
        seed=seed,
        scores=tuple(scores),
        kid_of_subsets=subsets,
        likeliest_copies=copies,
    )


def _features(extractor: Extractor, pictures: PictureSet, say: Say) -> np.ndarray:
    say(f"{extractor.name}: {len(pictures)} pictures of {pictures.name}")
    features, was_there = cached_features(extractor, pictures, say)
    if was_there:
        say(f"{extractor.name}: those of {pictures.name} were in the cache")
    return features


def _distances(name: str, mine: np.ndarray, true: np.ndarray, seed: int) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    if name == "inception":
        found["FID"] = fid(mine, true)
        found[f"KID × {KID_SCALE}"] = _times(KID_SCALE, kid(mine, true))
    if name == "clip":
        found["CMMD (this CLIP)"] = cmmd(mine, true)
    manifold = manifold_scores(mine, true, seed=seed)
    return found | {part: getattr(manifold, part) for part in vars(manifold)}


def _memorisation(
    mine: np.ndarray, known: np.ndarray, held_out: np.ndarray, seed: int
) -> MemorisationScores:
    try:
        return memorisation(mine, known, held_out, seed)
    except ValueError as error:
        raise UserError(f"--train: {error}; give different pictures") from None


def _memorisation_scores(found: MemorisationScores) -> dict[str, Estimate]:
    scores = {"memorisation ratio": found.ratio, "copies": found.copies}
    if found.to_held_out is not None:
        scores["nearness to training over real"] = found.to_held_out
    return scores


def _likeliest_copies(
    found: MemorisationScores, generated: PictureSet, train: PictureSet
) -> tuple[Neighbour, ...]:
    order = np.argsort(found.ratios, kind="stable")[:NEIGHBOURS]
    return tuple(
        Neighbour(generated.names[row], train.names[found.rows[row]], float(found.ratios[row]))
        for row in order
    )


def _mean_ssim(
    generated: PictureSet, real: PictureSet, partners: Sequence[int], seed: int
) -> Estimate:
    """Pair after pair; the true picture is brought to the generated one's side."""
    found = []
    for row, partner in enumerate(partners):
        mine = generated.picture(row)
        side = min(mine.shape[:2])
        if side < WINDOW:
            raise UserError(
                f"{generated.names[row]} is {side} pixels: SSIM needs {WINDOW}, give larger ones"
            )
        pair = [resize_and_crop(one, side)[None] for one in (mine, real.picture(partner))]
        found.append(ssim(*pair)[0])
    return mean_interval(np.array(found), seed)


def _times(scale: float, one: Estimate) -> Estimate:
    return Estimate(scale * one.value, scale * one.low, scale * one.high)


def _score(name: str, features: str, found: Estimate) -> Score:
    return Score(name, features, found.value, found.low, found.high)
