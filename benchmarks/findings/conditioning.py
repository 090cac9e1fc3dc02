"""Why a prior: the decoder is given the caption alone, the text embedding in the place of the image
embedding, what each prior draws, and the true picture's embedding (Ramesh et al. 2022, figure 8 and
section 5.1). The caption is given in all of them."""

from __future__ import annotations

from benchmarks.findings.bench import Bench, Row
from unclip_jax.generation.programs import PRIORS

TITLE = "Why a prior, and which"


def measure(bench: Bench) -> list[Row]:
    """A row for each embedding that the decoder is given."""
    ways = {"caption alone": None, "text embedding": bench.text}
    for prior, stage in PRIORS.items():
        if stage in bench.unclip.stages:
            ways[f"{prior} prior"] = bench.draw_prior(prior)
    ways["true image embedding"] = bench.embeddings
    rows = []
    for name, embeddings in ways.items():
        rows.append(bench.score(name, [bench.draw(name.replace(" ", "-"), embeddings)]))
        if embeddings is not None:
            cosine = (embeddings * bench.embeddings).sum(axis=1)
            rows[-1]["cosine"] = bench.mean(cosine)
    rows.append(bench.score("true pictures", [bench.pictures.images]))
    return rows
