"""Two draws of the prior, of which the one nearer to the text embedding is kept (section 2.2)."""

from __future__ import annotations

import numpy as np

from benchmarks.findings.bench import Bench, Row, interval
from unclip_jax.evaluation.intervals import share_interval
from unclip_jax.evaluation.scores import ranks, same

TITLE = "Best of two"


def measure(bench: Bench) -> list[Row]:
    """A row for each number of candidates: cosines to the text and to the true picture, the share
    of prompts whose own picture is the nearest of all, and the gain over one draw, prompt by
    prompt."""
    relevant, rows = same(bench.captions, bench.captions), []
    alone: np.ndarray | None = None
    for candidates in (1, 2, 4):
        drawn = bench.draw_prior("diffusion", draw=candidates, candidates=candidates)
        cosine = (drawn * bench.embeddings).sum(axis=1)
        alone = cosine if alone is None else alone
        hits = ranks(drawn @ bench.embeddings.T, relevant) < 1
        rows.append(
            {
                "name": f"best of {candidates}" if candidates > 1 else "one draw",
                "cosine_to_text": bench.mean((drawn * bench.text).sum(axis=1)),
                "cosine": bench.mean(cosine),
                "gain": bench.mean(cosine - alone),
                "r1": interval(share_interval(hits)),
            }
        )
    return rows
