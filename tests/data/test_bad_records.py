"""Unreadable pictures that several processes of a run find, each at its own time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


def test_fewer_processes_continue_with_the_lists_of_all(tmp_path: Path) -> None:
    for process in range(3):
        BadRecords(tmp_path / "skipped.jsonl", process_index=process).add(f"n{process}", "torn", 9)
    with (tmp_path / "skipped.2.jsonl").open("a") as file:
        file.write('{"name": "half a li')  # killed while it wrote
    assert BadRecords(tmp_path / "skipped.jsonl").count == 3
