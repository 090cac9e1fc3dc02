"""How well each of some texts describes each of some pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Match:
    """A text beside a picture."""

    text: str
    probability: float
    """Among all texts that were given."""
    cosine: float


@dataclass(frozen=True, eq=False)
class Matches:
    """N pictures against M texts."""

    texts: tuple[str, ...]
    cosines: np.ndarray
    """[N, M] float32."""
    probabilities: np.ndarray
    """[N, M] float32, over the texts: softmax of the cosines times CLIP's own `logit_scale`."""

    def best(self, count: int = 5) -> list[list[Match]]:
        """For each picture the `count` texts that fit best, the best first; of equals the first."""
        order = np.argsort(-self.cosines, axis=1, kind="stable")[:, :count]
        return [
            [
                Match(
                    self.texts[place],
                    float(self.probabilities[row, place]),
                    float(self.cosines[row, place]),
                )
                for place in places
            ]
            for row, places in enumerate(order.tolist())
        ]


def match(
    pictures: np.ndarray, texts: tuple[str, ...], embeddings: np.ndarray, scale: float
) -> Matches:
    """
    Args:
        pictures, embeddings: [N, E] and [M, E] float32, unit norm.
        texts: what the M embeddings stand for.
        scale: factor on cosines, see `encoding.logit_scale`.
    """
    cosines = pictures @ embeddings.T
    logits = scale * (cosines - cosines.max(axis=1, keepdims=True))
    weights = np.exp(logits)
    return Matches(texts, cosines, weights / weights.sum(axis=1, keepdims=True))
