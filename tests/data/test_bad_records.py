"""Unreadable pictures that several processes of a run find, each at its own time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.room import no_room
from unclip_jax.data.bad_records import BadRecords
from unclip_jax.errors import UserError


def names(path: Path) -> list[str]:
    return [json.loads(line)["name"] for line in path.read_text().splitlines()]


def test_each_record_is_listed_by_the_process_that_met_it_first(tmp_path: Path) -> None:
    first, second = (BadRecords(tmp_path / "skipped.jsonl", process_index=p) for p in range(2))
    first.add("a", "torn", 10)
    second.add("a", "torn", 10)  # in another epoch it is the other process's
    second.add("b", "torn", 10)
    first.add("b", "torn", 10)
    assert names(tmp_path / "skipped.jsonl") == ["a"]
    assert names(tmp_path / "skipped.1.jsonl") == ["b"]
    assert first.count == second.count == 2


def test_the_limit_is_for_all_processes_together(tmp_path: Path) -> None:
    first, second = (BadRecords(tmp_path / "skipped.jsonl", 0.2, process_index=p) for p in range(2))
    first.add("a", "torn", 10)
    second.add("b", "torn", 10)
    with pytest.raises(UserError, match="3 of 10 pictures cannot be read"):
        second.add("c", "torn", 10)


def test_a_name_that_is_not_utf_8_is_listed_and_counted_once(tmp_path: Path) -> None:
    """By a resumed run too, and its message is one that a terminal can take."""
    name = os.fsdecode(b"\xff\xfe \xc3\xa9.png")
    for _ in range(2):
        bad = BadRecords(tmp_path / "skipped.jsonl", 0.5)
        bad.add(name, "torn", 10)
        assert bad.count == 1
    assert names(tmp_path / "skipped.jsonl") == [name]
    assert "é" in (tmp_path / "skipped.jsonl").read_text(encoding="utf-8")
    with pytest.raises(UserError) as caught:
        BadRecords(max_fraction=0.0).add(name, "torn", 10)
    str(caught.value).encode("utf-8")


def test_fewer_processes_continue_with_the_lists_of_all(tmp_path: Path) -> None:
    for process in range(3):
        BadRecords(tmp_path / "skipped.jsonl", process_index=process).add(f"n{process}", "torn", 9)
    with (tmp_path / "skipped.2.jsonl").open("a") as file:
        file.write('{"name": "half a li')  # killed while it wrote
    assert BadRecords(tmp_path / "skipped.jsonl").count == 3


def test_a_full_disk_keeps_the_count(tmp_path: Path) -> None:
    bad = BadRecords(tmp_path / "skipped.jsonl", 0.5)
    with no_room(0):
        bad.add("a", "torn", 2)
        with pytest.raises(UserError, match="2 of 3 pictures cannot be read"):
            bad.add("b", "torn", 3)
