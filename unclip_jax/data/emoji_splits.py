"""Which emoji pictures are for training and which are held out.

Splits are drawn over groups of concepts, never over files. A group is one concept, or several whose
pictures are near-duplicates in at least one style ("flag: Norway" and "flag: Bouvet Island"); the
groups of several are in `assets/emoji/groups.json`, computed once by `near_duplicates` over all
pictures of all styles, so that splits never move with a renderer.

- test: the groups whose hash is below 10 %, in every style.
- test_cells: of the other groups, the (group, style) cells whose hash is below 5 %, as long as
  every concept of the group stays in train in two other styles: the concept is known, the picture
  is not.
- train: the rest.

The hash of a text is the first 32 bits of its SHA-256, as a fraction of 2^32.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np

from unclip_jax.data.emoji_catalogue import ASSETS

SPLITS = ("train", "test", "test_cells")
TEST_FRACTION = 0.10
CELL_FRACTION = 0.05
GROUPS_FILE = ASSETS / "groups.json"
NEAR_DUPLICATE = 0.15
"""Distance below which two pictures of one style are near-duplicates (`distances`)."""


def fraction(text: str) -> float:
    """A fixed pseudo-random number in [0, 1) for a text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


@cache
def load_groups() -> dict[str, str]:
    """Concept → name of its group, for the concepts that share one: its first member by name."""
    groups = json.loads(GROUPS_FILE.read_text(encoding="utf-8"))
    return {concept: group[0] for group in groups for concept in group}


def assign_splits(
    styles: Mapping[str, Iterable[str]], groups: Mapping[str, str] | None = None
) -> dict[tuple[str, str], str]:
    """The split of every (concept, style) cell.

    Args:
        styles: concept → the styles in which its picture exists.
        groups: concept → group for concepts in groups of several; None takes the shipped ones.
    """
    groups = load_groups() if groups is None else groups
    members: dict[str, list[str]] = {}
    for concept in styles:
        members.setdefault(groups.get(concept, concept), []).append(concept)
    splits: dict[tuple[str, str], str] = {}
    for group, concepts in members.items():
        cells = {style for concept in concepts for style in styles[concept]}
        is_test = fraction(group) < TEST_FRACTION
        held = set() if is_test else _held_styles(group, [set(styles[c]) for c in concepts], cells)
        for concept in concepts:
            for style in styles[concept]:
                held_out = "test_cells" if style in held else "train"
                splits[concept, style] = "test" if is_test else held_out
    return splits


def _held_styles(group: str, styles_of: list[set[str]], cells: set[str]) -> set[str]:
    held: set[str] = set()
    for style in sorted(cells):
        known = all(len(styles - held - {style}) >= 2 for styles in styles_of)
        if known and fraction(f"{group}, {style} style") < CELL_FRACTION:
            held.add(style)
    return held


def distances(images: np.ndarray) -> np.ndarray:
    """How different pictures look when they are small, compared to how much is drawn in them.

    With a, b the pictures at 16 × 16 as darkness (0 is white):
    |a − b| / sqrt((|a|² + |b|²) / 2), the smaller of b and b mirrored. 0 is the same picture; two
    drawings that do not overlap have √2.

    Args:
        images: [N, S, S, 3] uint8, S a multiple of 16.
    Returns:
        [N, N] float32.
    """
    count, side = images.shape[0], images.shape[1] // 16
    small = images.reshape(count, 16, side, 16, side, 3).mean((2, 4), dtype=np.float32)
    ink = 1.0 - small / 255.0
    plain, mirrored = ink.reshape(count, -1), ink[:, :, ::-1].reshape(count, -1)
    energy = (plain**2).sum(1)
    total = energy[:, None] + energy[None]
    overlap = np.maximum(plain @ plain.T, plain @ mirrored.T)
    return np.sqrt(np.maximum(total - 2 * overlap, 0) / np.maximum(total / 2, 1e-9))


def near_duplicates(images: np.ndarray, concepts: Sequence[str]) -> set[tuple[str, str]]:
    """Pairs of concepts that have near-duplicate pictures among `images` of one style.

    Args:
        images: [N, S, S, 3] uint8.
        concepts: the concept of each.
    """
    rows, columns = np.nonzero(np.triu(distances(images) < NEAR_DUPLICATE, 1))
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    named = ((concepts[i], concepts[j]) for i, j in pairs)
    return {(min(a, b), max(a, b)) for a, b in named if a != b}


def make_groups(pairs: Iterable[tuple[str, str]], concepts: Iterable[str]) -> list[list[str]]:
    """Groups of several concepts, sorted: the connected components of `pairs` and of the clocks.

    The 24 clock faces are one group whatever their distance: they differ by two thin lines.
    """
    clocks = [c for c in concepts if c.endswith(("o’clock", "-thirty"))]
    parent: dict[str, str] = {}

    def root(concept: str) -> str:
        while parent.setdefault(concept, concept) != concept:
            concept = parent[concept]
        return concept

    for first, second in [*pairs, *itertools.pairwise(clocks)]:
        parent[root(first)] = root(second)
    groups: dict[str, list[str]] = {}
    for concept in parent:
        groups.setdefault(root(concept), []).append(concept)
    return sorted(sorted(group) for group in groups.values())
