"""The report of `evaluate --generated` as files, and as text that can go into a README."""

from __future__ import annotations

import json
from pathlib import Path

from unclip_jax.config import to_dict
from unclip_jax.evaluation.picture_scores import PictureReport
from unclip_jax.files import make_folder, write_whole

_MEANING = {
    "FID": "lower is better; biased by 1/N, compare only at one N",
    "KID × 1000": "lower is better; unbiased, 0 within its interval is as good as real",
    "CMMD (this CLIP)": "lower is better; comparable with the same CLIP only",
    "precision": "share of the generated pictures that look like real ones",
    "recall": "share of the real pictures that could have been generated",
    "density": "as precision, less moved by outliers; 1 for real pictures",
    "coverage": "share of the real pictures that have a generated one beside them",
    "memorisation ratio": "distance to the nearest training picture over its own; 0: a copy",
    "copies": "share of the generated pictures whose ratio is below 1/3",
    "nearness to training over real": "1: no nearer to the training pictures than real ones",
    "distance to the true picture": "lower is better",
    "cosine to the true picture": "1 for the same",
    "SSIM": "1 for the same",
}
_FEW = 2000


def report_to_markdown(report: PictureReport) -> str:
    """A table of scores with their intervals, and what they mean."""
    sets = (
        f"{report.num_generated} pictures of `{_cell(report.generated)}` beside "
        f"{report.num_real} of `{_cell(report.real)}`"
    )
    if report.train is not None:
        sets += f", copies looked for in {report.num_train} of `{_cell(report.train)}`"
    lines = [
        "# Evaluation of pictures",
        "",
        f"{sets}. In brackets 95 % intervals. Seed {report.seed}.",
        "",
        "| score | features | value | 95 % | what it says |",
        "| --- | --- | --- | --- | --- |",
    ]
    for score in report.scores:
        interval = f"{score.low:.3f} to {score.high:.3f}"
        meaning = _MEANING.get(score.name, "")
        lines.append(
            f"| {score.name} | {score.features} | {score.value:.3f} | {interval} | {meaning} |"
        )
    if report.kid_of_subsets.get("subsets", 0) > 1:
        part = report.kid_of_subsets
        subsets = (
            f"KID × 1000 as its authors estimate it: {part['mean']:.3f} ± {part['deviation']:.3f} "
            f"(standard deviation over {part['subsets']} subsets of {part['size']})."
        )
        lines += ["", subsets]
    if "inception" in report.extractors and min(report.num_generated, report.num_real) < _FEW:
        lines += ["", f"With fewer than {_FEW} pictures FID says nothing by itself: read KID."]
    return "\n".join(lines) + "\n"


def save_report(out: Path, report: PictureReport) -> str:
    """evaluation.json and evaluation.md; returns the text of the latter.

    Raises:
        UserError: the folder cannot be written.
    """
    text = report_to_markdown(report)
    data = json.dumps(to_dict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    make_folder(out)
    write_whole(out / "evaluation.json", data.encode())
    write_whole(out / "evaluation.md", text.encode())
    return text


def _cell(name: str) -> str:
    """A name from outside without the signs of a table."""
    return name.replace("|", "\\|").replace("`", "'")
