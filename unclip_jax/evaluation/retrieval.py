"""CLIP alone: do pictures find their captions, and captions their pictures?"""

from __future__ import annotations

from dataclasses import dataclass

from unclip_jax.evaluation.encoders import own_text_is_first
from unclip_jax.evaluation.pictures import Pictures, style_candidates
from unclip_jax.evaluation.scores import chance_at_1, recall_at, same
from unclip_jax.pipeline import UnCLIP


@dataclass(frozen=True)
class RetrievalScores:
    """Retrieval within one split; shares are 0 to 1."""

    split: str
    pictures: int
    candidates: int
    """Distinct captions of the split, which every picture is compared with."""
    image_to_text_r1: float
    image_to_text_r5: float
    text_to_image_r1: float
    chance_r1: float
    """image_to_text_r1 of a guess."""
    label_r1: float
    """The nearest caption names the right thing, in whatever style."""
    label_chance_r1: float
    style_r1: float
    """Of the captions of the own label in all four styles the right one is nearest."""


def measure_retrieval(unclip: UnCLIP, split: str, pictures: Pictures) -> RetrievalScores:
    """Each picture against the distinct captions of all of them, and the other way round.

    A candidate with the text of the own caption is a right answer, whichever picture it came from.
    """
    captions, labels = pictures.captions, pictures.labels
    label_of = dict(zip(captions, labels, strict=True))
    candidates = list(label_of)
    image = unclip.encode_image(pictures.images)
    similarity = image @ unclip.encode_text(candidates).T
    relevant = same(captions, candidates)
    same_label = same(labels, [label_of[text] for text in candidates])
    styles = [style_candidates(fact) for fact in pictures.facts]
    return RetrievalScores(
        split=split,
        pictures=len(captions),
        candidates=len(candidates),
        image_to_text_r1=recall_at(similarity, relevant, 1),
        image_to_text_r5=recall_at(similarity, relevant, 5),
        text_to_image_r1=recall_at(similarity.T, relevant.T, 1),
        chance_r1=chance_at_1(relevant),
        label_r1=recall_at(similarity, same_label, 1),
        label_chance_r1=chance_at_1(same_label),
        style_r1=float(own_text_is_first(unclip, image[:, None], styles).mean()),
    )
