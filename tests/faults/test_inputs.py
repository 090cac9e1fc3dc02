"""The table of hostile input has no failure, and would show one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import inputs


def test_every_input_is_survived(tmp_path: Path) -> None:
    outcomes = list(inputs.try_faults(1, tmp_path))
    assert [one.note for one in outcomes if one.survived < one.tried] == []
    assert sum(one.tried for one in outcomes) > 200


def test_a_failure_is_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"a fox": ("a.txt", b"a fox", "never said"), "a crash": ("a.txt", b"a\0", "control")}
    monkeypatch.setattr(inputs.hostile_prompts, "REFUSED", cases)

    def crash(path: Path) -> list[str]:
        if path.read_bytes() == b"a fox":
            return ["a fox"]
        raise ZeroDivisionError

    monkeypatch.setattr(inputs, "read_prompts", crash)
    _, refused = inputs._prompts(tmp_path)
    assert (refused.tried, refused.survived) == (2, 0)
    assert refused.note == "FAILED: a fox, a crash (ZeroDivisionError)"
