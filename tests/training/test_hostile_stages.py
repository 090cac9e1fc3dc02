"""Exported stages from strangers: refused in one line, in 2 s and 300 MB."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.hostile_stages import CASES, make_all, save_whole
from unclip_jax.errors import UserError
from unclip_jax.training.recipe import recipe_from_json

EMOJI = ("clip", "prior", "ar_prior", "linear_prior", "decoder", "upsampler_256")


@pytest.fixture(scope="module")
def measured(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, float, float]]:
    """Words, seconds and megabytes of every case."""
    root = tmp_path_factory.mktemp("stages")
    save_whole(root / "whole")
    make_all(root / "whole", root)
    command = [sys.executable, "-m", "tests.training.hostile_stages", str(root)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_line(name: str, measured: dict[str, tuple[str, float, float]]) -> None:
    words, seconds, megabytes = measured[name]
    assert re.search(CASES[name][1], words), words
    assert "\n" not in words and "\x1b" not in words and len(words) < 1000
    assert seconds < 2 and megabytes < 300


def numbers(data: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the whole numbers of a config are."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for name, value in items:
        if isinstance(value, dict | list):
            yield from numbers(value, (*place, name))
        elif type(value) is int:
            yield (*place, name)


@pytest.mark.parametrize("stage", EMOJI)
def test_no_number_may_be_absurd(stage: str, repository: Path) -> None:
    """Every whole number that shapes a network: the class that has it refuses it."""
    folder = repository / "unclip_jax" / "assets" / "models" / "emoji" / stage
    recipe = json.loads((folder / "config.json").read_text())["recipe"]
    recipe_from_json(recipe)
    places = [place for place in numbers(recipe) if place[0] in ("model", "diffusion")]
    assert places
    for place in places:
        for value in (10**9, 10**400, -1, float("nan"), "8", [8], True, {"a": 8}):
            changed = copy.deepcopy(recipe)
            parent: Any = changed
            for name in place[:-1]:
                parent = parent[name]
            parent[place[-1]] = value
            with pytest.raises(UserError) as caught:
                recipe_from_json(changed)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
