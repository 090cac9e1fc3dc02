"""A few faults of each kind that `python -m tests.faults sampling` tries."""

from __future__ import annotations

import signal

import pytest

from tests.faults.sampling import (
    Job,
    can_mount,
    disk_full,
    file_too_large,
    killed,
    stopped,
    taken_away,
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job.make(tmp_path_factory.mktemp("job"))


def test_killed_at_random_points(job: Job) -> None:
    outcome = killed(job, 2)
    assert outcome.survived == outcome.tried == 2, outcome.note


def test_a_signal_while_it_draws(job: Job) -> None:
    stopped(job, signal.SIGTERM)


def test_a_disk_that_is_full(job: Job) -> None:
    if can_mount():
        disk_full(job)
    else:  # the next best: a write that ends half-way
        file_too_large(job)


def test_a_folder_that_is_deleted(job: Job) -> None:
    taken_away(job, "deleted")
