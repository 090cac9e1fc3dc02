"""Pictures drawn from ever more principal components of their embedding (figure 7): what is drawn
comes first, its details after."""

from __future__ import annotations

import numpy as np

from benchmarks.findings.bench import Bench, Row
from unclip_jax.evaluation.similarity import ssim

TITLE = "Reconstruction from principal components"
ROWS = 100


def measure(bench: Bench) -> list[Row]:
    """A row for each number of components. The caption is empty and the noise the same, so that the
    embedding alone decides."""
    codes = bench.unclip.stage("ar_prior").codes
    axes, mean = np.asarray(codes.axes), np.asarray(codes.mean)
    true = bench.embeddings[:ROWS]
    images = bench.pictures.images[:ROWS]
    judged = bench.judge.encode_image(images)
    values = (true - mean) @ axes.T
    rows = []
    for count in sorted({2, 5, 10, 20, 40, len(axes)}):
        part = mean + values[:, :count] @ axes[:count]
        kept = (part / np.linalg.norm(part, axis=1, keepdims=True)).astype(np.float32)
        drawn = bench.draw(f"components-{count}", kept, texts=[""] * len(true))
        rows.append(
            {
                "name": f"{count} components",
                "count": count,
                "cosine": bench.mean((kept * true).sum(axis=1)),
                "judge_cosine": bench.mean((bench.judge.encode_image(drawn) * judged).sum(axis=1)),
                "ssim": bench.mean(ssim(drawn, images)),
            }
        )
    return rows
