"""The area `disk`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import disk


@pytest.mark.skipif(not disk.can_mount(), reason="no file system can be mounted here")
def test_survives(tmp_path: Path) -> None:
    outcomes = list(disk.try_faults(1, tmp_path))
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert outcome.survived == outcome.tried > 0, outcome.note
