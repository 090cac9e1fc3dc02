"""Guidance trades diversity for fidelity; unCLIP, whose embedding holds what is drawn, should lose
less of it than GLIDE, the same decoder without an embedding (figures 9 to 11)."""

from __future__ import annotations

from benchmarks.findings.bench import Bench, Row

TITLE = "Guidance: fidelity against diversity"
SCALES = (1.0, 2.0, 3.0, 5.0)
DRAWS = 2


def measure(bench: Bench) -> list[Row]:
    """A row for each scale and way. Each prompt is drawn twice, with other noise and, for unCLIP,
    another embedding of the prior."""
    rows = []
    embeddings = [bench.draw_prior("diffusion", draw) for draw in range(DRAWS)]
    for way in ("unCLIP", "GLIDE"):
        for scale in SCALES:
            draws = [
                bench.draw(
                    f"{way}-guidance-{scale:g}-{draw}",
                    embeddings[draw] if way == "unCLIP" else None,
                    bench.with_guidance(scale),
                    draw=draw,
                )
                for draw in range(DRAWS)
            ]
            row = bench.score(f"{way}, guidance {scale:g}", draws)
            rows.append({**row, "way": way, "scale": scale})
    return rows
