"""Where the corpus lies: small inputs of each target, regressions among them."""

from __future__ import annotations

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
"""A folder a target."""
FINDINGS = Path("fuzz-findings")
"""In the current folder: inputs that a parser did not survive."""
