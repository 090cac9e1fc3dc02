"""Two processes that train as one: one of them is signalled, poisoned or killed, or is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.outcome import Outcome
from tests.faults.runs import EVERY, STEPS, Runs, end_all

SPLIT = ("--mesh.fsdp", "2")


def try_faults(rounds: int, folder: Path) -> Iterator[Outcome]:
    """All of this area."""
    runs = Runs(folder)
    train_whole(runs)
    yield one_signalled(runs, max(1, rounds // 10))
    yield one_signalled_early(runs)
    yield one_poisoned(runs)
    yield one_killed(runs, max(1, rounds // 10))
    yield other_numbers(runs)


def train_whole(runs: Runs) -> None:
    """The run `whole` of two processes, which nothing happens to."""
    codes, errors = end_all(runs.hosts("whole", *SPLIT))
    assert codes == [0, 0], errors


def one_signalled(runs: Runs, rounds: int) -> Outcome:
    """SIGTERM or SIGINT to one of them: both end at the same step with a checkpoint."""
    survived, note = 0, ""
    for round_ in range(rounds):
        number = (signal.SIGTERM, signal.SIGINT)[round_ % 2]
        name = f"signalled_{round_}"
        processes = runs.hosts(name, *SPLIT)
        runs.wait_for_step(name, 7 + 11 * round_ % 40, processes[0])
        processes[1 - round_ % 2].send_signal(number)
        began = time.monotonic()
        codes, errors = end_all(processes)
        took = time.monotonic() - began
        is_right = codes == [128 + number] * 2 and took < 5 + 2
        is_right &= runs.steps(name)[-1] == runs.rows(name)[-1]["step"]
        again, _ = end_all(runs.hosts(name, *SPLIT))
        different = runs.same(name, "whole") if again == [0, 0] else f"then {again}"
        survived += is_right and not different
        note = note or different or ("" if is_right else f"{codes} {took} {errors}")
    note = note or "both saved the same step; continued bit for bit"
    return Outcome("a signal to one of two processes", rounds, survived, 0, None, note)


def one_signalled_early(runs: Runs) -> Outcome:
    """A signal to one while both compile: they end together, after the first step."""
    processes = runs.hosts("early", *SPLIT)
    while not (runs.folder / "early" / "lock").exists() and processes[1].poll() is None:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = end_all(processes)
    again, _ = end_all(runs.hosts("early", *SPLIT))
    different = runs.same("early", "whole") if again == [0, 0] else f"then {again}"
    is_right = codes == [143, 143] and not different
    note = "both saved the first step" if is_right else f"{codes} {different} {errors}"
    fault = "a signal to one of two before the first step"
    return Outcome(fault, 1, int(is_right), 0, None, note)


def one_poisoned(runs: Runs) -> Outcome:
    """NaN and a spike in the rows of one process: both skip the steps, and go back together."""
    faults = ("", "nan:12-12,spike:16-16,nan:22-24")
    guard = ("--guard.patience", "3")
    codes, errors = end_all(runs.hosts("poisoned", *SPLIT, *guard, faults=faults))
    rows = runs.rows("poisoned")
    is_skipped = codes == [0, 0] and [rows[i]["skipped_steps"] for i in (12, 16)] == [1, 2]
    numbers = [[number for number, _ in runs.batches("poisoned", i)] for i in range(2)]
    is_back = "back to step 20" in errors[0] and numbers == [[*range(STEPS + 5)]] * 2
    is_right = is_skipped and is_back and rows[-1]["step"] == STEPS
    note = "skipped and rolled back on both" if is_right else f"{codes} {errors}"
    return Outcome("nan and a spike on one of two processes", 1, int(is_right), EVERY, None, note)


def one_killed(runs: Runs, rounds: int) -> Outcome:
    """kill -9 of one: the other ends, and the supervisors start both again."""
    survived, seconds, note = 0, 0.0, ""
    for round_ in range(rounds):
        name = f"orphan_{round_}"
        restarts = ("--restarts", "5")
        heartbeat = {"UNCLIP_HEARTBEAT_SECONDS": "5"}
        processes = runs.hosts(name, *SPLIT, *restarts, **heartbeat)
        runs.wait_for_step(name, 8 + 9 * round_ % 40, processes[0])
        victim = _child(processes[1 - round_ % 2].pid)
        batches = runs.folder / f"{name}.0.batches"
        before = batches.read_bytes().count(b"\n")
        signal_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        while batches.read_bytes().count(b"\n") < before + 8 and processes[0].poll() is None:
            time.sleep(0.05)  # what was under way, and then the first steps of the new start
        seconds = max(seconds, time.monotonic() - signal_at)
        codes, errors = end_all(processes)
        different = runs.same(name, "whole") if codes == [0, 0] else f"{codes} {errors}"
        survived += not different
        note = note or different
    note = note or "the other ended, both were started again and went on bit for bit"
    return Outcome("kill -9 of one of two, --restarts", rounds, survived, 2 * EVERY, seconds, note)


def _child(supervisor: int) -> int:
    return int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0])


def other_numbers(runs: Runs) -> Outcome:
    """Two processes, then one, then two, stopped in the middle of an epoch each time."""
    import numpy as np

    for count, stop in ((2, 17), (1, 31), (2, 0)):
        processes = runs.hosts("elastic", *SPLIT, count=count)
        if stop:
            runs.wait_for_step("elastic", stop, processes[0])
            processes[0].send_signal(signal.SIGTERM)
        codes, errors = end_all(processes)
        assert all(code == (143 if stop else 0) for code in codes), errors
    numbers = [number for number, _ in runs.batches("elastic")]
    mine, theirs = runs.state("elastic"), runs.state("whole")
    # One process adds in another order: equal up to rounding, as its losses are.
    losses = [[row["loss"] for row in runs.rows(name)] for name in ("elastic", "whole")]
    is_close = np.allclose(*losses, rtol=1e-3) and mine.keys() == theirs.keys()
    is_right = numbers == [*range(STEPS)] and is_close
    note = "every example once, in the same order" if is_right else f"{numbers} {losses}"
    return Outcome("2, 1 and 2 processes in one run", 2, 2 * is_right, 0, None, note)
