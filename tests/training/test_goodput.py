"""The ledger of a run's wall time, with a clock that the test turns."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from unclip_jax.training import goodput as module
from unclip_jax.training.goodput import Goodput


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def spend(ledger: Goodput, clock: Clock, kind: str, seconds: float) -> None:
    with ledger.span(kind):  # pyright: ignore[reportArgumentType]
        clock.pass_(seconds)


def test_what_is_in_no_span_is_steps(tmp_path: Path, clock: Clock) -> None:
    began = clock.now
    clock.pass_(5)
    ledger = Goodput(tmp_path, 0, began)
    spend(ledger, clock, "compile", 7)
    for step in range(1, 11):
        spend(ledger, clock, "input", 0.1)
        clock.pass_(1)
        ledger.reached(step)
    spend(ledger, clock, "save", 2)
    ledger.write()
    entry = json.loads((tmp_path / "goodput.json").read_text())[0]
    assert entry["first_step"] == 1 and entry["last_step"] == 10
    seconds = entry["seconds"]
    assert seconds == pytest.approx(
        {"total": 25, "steps": 10, "start": 5, "compile": 7, "input": 1, "save": 2}
        | {"preview": 0, "recover": 0}
    )
    assert ledger.summary() == "steps 40.0%, start 20.0%, compile 28.0%, input 4.0%, save 8.0%"


def test_steps_that_are_done_again_are_recovering(tmp_path: Path, clock: Clock) -> None:
    first = Goodput(tmp_path, 0, clock.now)
    first.reached(8)
    first.write()
    began = clock.now
    clock.pass_(3)
    ledger = Goodput(tmp_path, 5, began)  # killed after step 8, continued from 5
    for step in range(6, 12):
        spend(ledger, clock, "input", 0.5)
        clock.pass_(1)
        ledger.reached(step)
    seconds = ledger.seconds()
    assert (seconds["recover"], seconds["steps"]) == pytest.approx((3 + 3 * 1.5, 3))
    assert seconds["input"] == pytest.approx(3 * 0.5)
    ledger.write()
    assert [entry["last_step"] for entry in json.loads((tmp_path / module.FILE).read_text())] == [
        8,
        11,
    ]


def test_going_back_is_recovering_too(tmp_path: Path, clock: Clock) -> None:
    ledger = Goodput(tmp_path, 0, clock.now)
    for step in range(1, 11):
        clock.pass_(1)
        ledger.reached(step)
    spend(ledger, clock, "recover", 2)
    ledger.go_back(5)
    for step in range(6, 15):
        clock.pass_(1)
        ledger.reached(step)
    assert ledger.seconds()["steps"] == pytest.approx(10 + 4)
    assert ledger.seconds()["recover"] == pytest.approx(2 + 5)
