"""A bounded part of the area `training`; `python -m tests.faults training` tries all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import training
from tests.faults.outcome import Outcome
from tests.faults.runs import Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """With the run `whole`."""
    runs = Runs(tmp_path_factory.mktemp("faults"))
    training.train_whole(runs)
    return runs


SCENES: dict[str, Callable[[Runs], Outcome]] = {
    "kills": lambda runs: training.kills(runs, 2),
    "stops": lambda runs: training.stops(runs, 1),
    "second_signals": training.second_signals,
    "damaged": lambda runs: training.damaged(runs, ("bit flipped", "no manifest")),
    "finished_damaged": training.finished_damaged,
    "all_damaged": training.all_damaged,
    "skipped_steps": lambda runs: training.skipped_steps(runs, ("nan", "spike")),
    "rollbacks": training.rollbacks,
    "second_run": training.second_run,
}


@pytest.mark.parametrize("scene", SCENES)
def test_survives(scene: str, runs: Runs) -> None:
    outcome = SCENES[scene](runs)
    assert outcome.survived == outcome.tried > 0, outcome.note


def test_every_damage_is_done(tmp_path: Path) -> None:
    """Each really changes the folder, so that `damaged` cannot pass for nothing."""
    for kind, damage in training.DAMAGES.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "manifest.json").write_bytes(bytes(range(200)) * 2)
        (folder / "array").write_bytes(bytes(range(1, 201)) * 50)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        word = damage(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} != before
        assert word in ("array", "manifest.json", "empty")
