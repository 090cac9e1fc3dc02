"""What is said while pictures are measured."""

from __future__ import annotations

import re

import numpy as np

from unclip_jax.evaluation.counted import counted

PICTURES = [np.full((1, 1, 3), value, np.uint8) for value in range(4)]


def test_lines_count_and_pictures_pass_unchanged() -> None:
    said: list[str] = []
    passed = list(counted(iter(PICTURES), 4, "inception", said.append, every=0.0))
    assert all(a is b for a, b in zip(passed, PICTURES, strict=True))
    assert len(said) == 3
    line = r"inception: 1 of 4 pictures, \S+ a second, \d+\.\d min left"
    assert re.fullmatch(line, said[0])


def test_a_short_pass_says_nothing() -> None:
    said: list[str] = []
    assert len(list(counted(PICTURES, 4, "inception", said.append))) == 4
    assert said == []
