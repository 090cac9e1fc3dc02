"""One process that trains: killed, stopped, given damaged checkpoints, bad steps and company."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.outcome import Outcome
from tests.faults.runs import EVERY, STEPS, Runs, attempts, end, kill_at


def try_faults(rounds: int, folder: Path) -> Iterator[Outcome]:
    """All of this area, each against an uninterrupted run."""
    runs = Runs(folder)
    train_whole(runs)
    yield kills(runs, rounds)
    yield stops(runs, max(1, rounds // 5))
    yield second_signals(runs)
    yield damaged(runs, tuple(DAMAGES))
    yield finished_damaged(runs)
    yield all_damaged(runs)
    yield skipped_steps(runs)
    yield rollbacks(runs)
    yield second_run(runs)


def train_whole(runs: Runs) -> None:
    """The run `whole`, which nothing happens to, and the program in the cache."""
    code, errors = end(runs.start("whole"))
    assert code == 0, errors


def kills(runs: Runs, rounds: int) -> Outcome:
    """kill -9 again and again: the finished run is the one that nothing happened to."""
    lost, beyond, seconds, saving = 0, 0, 0.0, 0
    for step, pause in attempts(rounds, seed=rounds):
        reached, resumed = kill_at(runs, "killed", step, pause)
        left = [path.name for path in (runs.folder / "killed" / "checkpoints").glob("*")]
        whole = [int(name) for name in left if is_whole(runs, "killed", name)]
        begun = [int(name.split(".")[0]) for name in left if not is_whole(runs, "killed", name)]
        saving += bool(begun)
        newest = max(whole, default=0)
        lost = max(lost, reached - newest)
        # The save in flight is lost with the process, and so are the steps since it began.
        beyond = max(beyond, min([*begun, reached]) - newest - EVERY)
        seconds = max(seconds, resumed)
    code, errors = end(runs.start("killed"))
    different = runs.same("killed", "whole") if code == 0 else errors
    if not different and beyond > 0:
        different = f"{beyond} steps lost beyond the interval and the save in flight"
    note = different or (
        f"state, metrics and order of examples bit for bit; {saving} of the kills were in a save; "
        f"no step lost beyond the interval of {EVERY} and the save in flight"
    )
    tried = min(rounds, STEPS - 3)
    return Outcome("kill -9 while training", tried, 0 if different else tried, lost, seconds, note)


def is_whole(runs: Runs, name: str, checkpoint: str) -> bool:
    """A checkpoint that has its manifest."""
    folder = runs.folder / name / "checkpoints" / checkpoint
    return checkpoint.isdecimal() and (folder / "manifest.json").exists()


def stops(runs: Runs, rounds: int) -> Outcome:
    """SIGTERM and SIGINT: the step that was reached is saved, and the rest is as if nothing was."""
    survived, slowest, note = 0, 0.0, ""
    draw = random.Random(rounds)
    for number in (signal.SIGTERM, signal.SIGINT):
        for round_ in range(rounds):
            name = f"stopped_{number.name}_{round_}"
            process = runs.start(name)
            runs.wait_for_step(name, draw.randrange(2, STEPS // 2), process)
            process.send_signal(number)
            began = time.monotonic()
            code, errors = end(process)
            took = time.monotonic() - began
            saved, logged = runs.steps(name)[-1], runs.rows(name)[-1]["step"]
            again, more = end(runs.start(name))
            is_right = code == 128 + number and saved == logged and took < 5 and again == 0
            different = runs.same(name, "whole") if is_right else f"{code} {took} {errors} {more}"
            survived += not different
            slowest, note = max(slowest, took), note or different
    note = note or f"saved and ended within {slowest:.1f} s; continued bit for bit"
    return Outcome("SIGTERM, SIGINT", 2 * rounds, survived, 0, None, note)


def second_signals(runs: Runs) -> Outcome:
    """A second signal ends at once, and so does the first before there is a step."""
    process = runs.start("twice")
    runs.wait_for_step("twice", 3, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    twice, _ = end(process)
    took = time.monotonic() - began
    early = runs.start("early")
    while not (runs.folder / "early" / "lock").exists() and early.poll() is None:
        time.sleep(0.01)
    early.send_signal(signal.SIGTERM)
    code, errors = end(early)
    began_again, _ = end(runs.start("early"))
    different = runs.same("early", "whole") if began_again == 0 else "did not begin again"
    at_once = twice == 128 + signal.SIGINT and took < 2
    before = code == 128 + signal.SIGTERM and "before the first step" in errors and not different
    note = f"ended within {took:.1f} s" if at_once and before else f"{twice} {took} {errors}"
    return Outcome(
        "a second signal, one before the first step", 2, at_once + before, None, None, note
    )


def _largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _truncate(folder: Path) -> str:
    path = _largest(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path.name


def _delete(folder: Path) -> str:
    path = _largest(folder)
    path.unlink()
    return path.name


def _flip(folder: Path) -> str:
    path = _largest(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path.name


def _zero(folder: Path) -> str:
    path = _largest(folder)
    data = bytearray(path.read_bytes())
    data[1000:5096] = bytes(4096)
    path.write_bytes(data)
    return path.name


def _empty(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.mkdir()
    return "empty"


def _no_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json"


def _bad_manifest(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:200])
    return path.name


DAMAGES: dict[str, Callable[[Path], str]] = {
    "truncated": _truncate,
    "file deleted": _delete,
    "bit flipped": _flip,
    "block zeroed": _zero,
    "empty folder": _empty,
    "no manifest": _no_manifest,
    "manifest cut": _bad_manifest,
}
"""How the newest checkpoint is damaged; each returns what the warning is to name."""


def damaged(runs: Runs, kinds: tuple[str, ...]) -> Outcome:
    """A newest checkpoint that is damaged: one line, and the run goes on from the one before."""
    half, survived, note = STEPS // 2, 0, ""
    code, errors = end(runs.start("half", steps=half))
    assert code == 0, errors
    for kind in kinds:
        name = kind.replace(" ", "_")
        shutil.copytree(runs.folder / "half", runs.folder / name)
        shutil.copy(runs.folder / "half.0.batches", runs.folder / f"{name}.0.batches")
        word = DAMAGES[kind](runs.folder / name / "checkpoints" / str(half))
        code, errors = end(runs.start(name))
        told = [line for line in errors.splitlines() if "damaged" in line]
        is_told = (
            len(told) == 1
            and word in told[0]
            and f"continuing {runs.folder / name} at step {half - EVERY}" in errors
        )
        different = runs.same(name, "whole") if code == 0 and is_told else errors[-500:]
        survived += not different
        note = note or (different and f"{kind}: {different}")
    note = note or f"one line with file and reason; resumed {EVERY} steps before, bit for bit"
    fault = f"newest checkpoint: {', '.join(kinds)}"
    return Outcome(fault, len(kinds), survived, EVERY, None, note)


def finished_damaged(runs: Runs) -> Outcome:
    """A bit of a finished run's last checkpoint flips: its steps are done again."""
    shutil.copytree(runs.folder / "whole", runs.folder / "finished")
    shutil.copy(runs.folder / "whole.0.batches", runs.folder / "finished.0.batches")
    word = _flip(runs.folder / "finished" / "checkpoints" / str(STEPS))
    code, errors = end(runs.start("finished"))
    is_told = f"continuing {runs.folder / 'finished'} at step {STEPS - EVERY}" in errors
    is_told &= word in errors
    different = runs.same("finished", "whole") if code == 0 and is_told else errors[-500:]
    note = different or f"one line; the last {EVERY} steps done again, bit for bit"
    fault = "last checkpoint of a finished run: bit flipped"
    return Outcome(fault, 1, int(not different), EVERY, None, note)


def all_damaged(runs: Runs) -> Outcome:
    """No good checkpoint is left: never a silent new beginning."""
    shutil.copytree(runs.folder / "whole", runs.folder / "ruined")
    for step in runs.steps("ruined"):
        _flip(runs.folder / "ruined" / "checkpoints" / str(step))
    code, errors = end(runs.start("ruined", steps=STEPS + 1))
    last = errors.splitlines()[-1]
    is_right = code == 2 and "no undamaged checkpoint" in last and "Traceback" not in errors
    again, more = end(runs.start("ruined", steps=STEPS + 1))
    is_right &= again == 2 and "damaged" in more.splitlines()[-1]
    note = "exit 2, twice" if is_right else f"{code} {last} {again} {more[-300:]}"
    return Outcome("every checkpoint damaged", 1, int(is_right), None, None, note)


def skipped_steps(runs: Runs, kinds: tuple[str, ...] = ("nan", "inf", "spike")) -> Outcome:
    """NaN, infinity and a spike of a hundred times the loss change nothing but the count."""
    import numpy as np

    survived, note = 0, ""
    code, errors = end(runs.start("short", faults="", steps=29))
    assert code == 0, errors
    before = runs.state("short")
    for kind in kinds:
        code, errors = end(runs.start(f"skip_{kind}", faults=f"{kind}:29", steps=30))
        # Its last step was skipped: everything else is what the run before that step had.
        state = runs.state(f"skip_{kind}")
        ignored = {"step", "guard/skipped", "guard/in_a_row"}
        odd = [k for k in before if k not in ignored and not np.array_equal(before[k], state[k])]
        row = runs.rows(f"skip_{kind}")[-1]
        is_right = code == 0 and not odd and row["skipped_steps"] == 1 and "skipped, loss" in errors
        survived += is_right
        note = note or ("" if is_right else f"{kind}: {odd[:3]} {row} {errors[-300:]}")
    note = note or "step skipped and counted; weights, average and optimiser untouched, bit for bit"
    fault = f"{', '.join(kinds)} in a step (spike: 100 times the loss)"
    return Outcome(fault, len(kinds), survived, 0, None, note)


def rollbacks(runs: Runs) -> Outcome:
    """Bad data again and again: back to the checkpoint, other data; then exit code 3."""
    guard = ("--guard.patience", "3", "--guard.rollbacks", "2")
    code, errors = end(runs.start("back", *guard, faults="nan:22-24"))
    numbers = [number for number, _ in runs.batches("back")]
    rows = runs.rows("back")
    is_back = code == 0 and "back to step 20" in errors and numbers == [*range(STEPS + 5)]
    is_back &= [row["step"] for row in rows] == [*range(1, STEPS + 1)]
    # Killed after it went back: the same command leaves out the same data.
    process = runs.start("back_killed", *guard, faults="nan:22-24")
    runs.wait_for_step("back_killed", 28, process)
    process.send_signal(signal.SIGKILL)
    end(process)
    again, _ = end(runs.start("back_killed", *guard, faults="nan:22-24"))
    different = runs.same("back_killed", "back") if again == 0 else "did not continue"
    code, errors = end(runs.start("hopeless", *guard, faults="nan:22-1000"))
    is_over = code == 3 and "gone back to step 20 2 times" in errors.splitlines()[-1]
    note = "data of the bad window left out, also after a kill; then exit 3"
    if not (is_back and is_over and not different):
        note = f"{numbers[-1]} {different} {code} {errors[-300:]}"
    survived = int(is_back) + int(not different) + int(is_over)
    return Outcome("bad steps in a row", 3, survived, EVERY, None, note)


def second_run(runs: Runs) -> Outcome:
    """Two runs on one folder: the second is refused; a dead one's lock is not in the way."""
    first = runs.start("shared", steps=1_000_000)
    runs.wait_for_step("shared", 2, first)
    code, errors = end(runs.start("shared", steps=1_000_000))
    is_refused = code == 2 and "in use by another run" in errors.splitlines()[-1]
    is_refused &= first.poll() is None
    first.send_signal(signal.SIGKILL)
    end(first)
    is_left = (runs.folder / "shared" / "lock").exists()
    reached = int(runs.rows("shared")[-1]["step"])
    code, errors = end(runs.start("shared", steps=reached + 1))
    is_free = is_left and code == 0
    note = "exit 2 and the first goes on" if is_refused and is_free else errors[-300:]
    return Outcome(
        "two runs on one folder, a stale lock", 2, is_refused + is_free, None, None, note
    )
