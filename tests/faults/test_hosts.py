"""A bounded part of the area `hosts`: see also tests/training/test_hosts_training.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults import hosts
from tests.faults.outcome import Outcome
from tests.faults.runs import Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """With the run `whole` of two processes."""
    runs = Runs(tmp_path_factory.mktemp("faults"))
    hosts.train_whole(runs)
    return runs


SCENES: dict[str, Callable[[Runs], Outcome]] = {
    "one_signalled_early": hosts.one_signalled_early,
    "one_poisoned": hosts.one_poisoned,
    "one_killed": lambda runs: hosts.one_killed(runs, 1),
    "other_numbers": hosts.other_numbers,
}


@pytest.mark.parametrize("scene", SCENES)
def test_survives(scene: str, runs: Runs) -> None:
    outcome = SCENES[scene](runs)
    assert outcome.survived == outcome.tried > 0, outcome.note
