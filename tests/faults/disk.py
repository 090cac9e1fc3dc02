"""A disk that is full while a checkpoint is written: a small file system in memory.

It is mounted in a name space of its own (`unshare`), where the whole scene plays.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.faults.outcome import Outcome
from tests.faults.runs import REPOSITORY, Runs, end

MEGABYTE = 2**20


def try_faults(rounds: int, folder: Path) -> Iterator[Outcome]:
    """All of this area; where nothing may be mounted, nothing is tried, and that is said."""
    if not can_mount():
        print("disk: no file system can be mounted here: not tried", file=sys.stderr)
        return
    command = ["unshare", "-rm", sys.executable, "-m", "tests.faults.disk", str(folder)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    for line in ended.stdout.splitlines():
        yield Outcome(**json.loads(line))


def can_mount() -> bool:
    """Whether this user may mount a file system of its own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


class SmallDisk:
    """A file system of `size` bytes at `folder`."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir()
        self.folder = folder
        options = f"size={size}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)

    def fill(self, left: int) -> None:
        """Until only `left` bytes are free."""
        count = shutil.disk_usage(self.folder).free - left
        with (self.folder / "ballast").open("wb") as file:
            file.write(bytes(max(0, count)))

    def empty(self) -> None:
        """Take that away again."""
        (self.folder / "ballast").unlink()


def full(runs: Runs) -> Outcome:
    """Space runs out in the middle of the run: it stops or goes on, and nothing good is lost."""
    size = checkpoint_bytes(runs)
    disk = SmallDisk(runs.folder / "small", 5 * size)
    survived, note = 0, ""
    for policy in ("stop", "go_on"):
        name = f"small/{policy}"
        process = runs.start(name, "--checkpoint.on_disk_full", policy, PACE="0.1")
        runs.wait_for_step(name, 12, process)
        disk.fill(size // 2)
        if policy == "go_on":
            runs.wait_for_step(name, 27, process)
            disk.empty()
        code, errors = end(process)
        told = [line for line in errors.splitlines() if "was not written" in line]
        is_right = bool(told) and all(word in told[0] for word in ("it needs", "are free in"))
        left = {path.name for path in (runs.folder / name / "checkpoints").iterdir()}
        is_right &= all(one.isdecimal() for one in left) and "Traceback" not in errors
        if policy == "stop":
            is_right &= code == 2 and told[0].endswith(f"from step {max(map(int, left))}")
            disk.empty()
            code, _ = end(runs.start(name))
        different = runs.same(name, "whole") if code == 0 else errors[-500:]
        survived += is_right and not different
        note = note or (
            "" if is_right and not different else f"{policy}: {different} {left} {told}"
        )
        shutil.rmtree(runs.folder / name)
    note = note or "bytes needed and free are named, no leftovers, older checkpoints good"
    return Outcome("disk full in a save: stop, go on", 2, survived, None, None, note)


def too_small(runs: Runs) -> Outcome:
    """A disk that cannot hold the checkpoints is told at the start."""
    disk = SmallDisk(runs.folder / "smaller", 2 * checkpoint_bytes(runs))
    began = time.monotonic()
    code, errors = end(runs.start("smaller/run"))
    last = errors.splitlines()[-1]
    is_right = code == 2 and "lower checkpoint.keep" in last and "Traceback" not in errors
    is_right &= not (disk.folder / "run" / "metrics.jsonl").exists()
    note = f"exit 2 after {time.monotonic() - began:.0f} s" if is_right else errors[-300:]
    return Outcome("a disk for fewer than keep + 1 checkpoints", 1, int(is_right), None, None, note)


def checkpoint_bytes(runs: Runs) -> int:
    """Of one checkpoint of these runs, in memory."""
    return sum(array.nbytes for array in runs.state("whole").values())


def main(folder: Path) -> None:
    """The scene, with a line of JSON for each outcome."""
    runs = Runs(folder)
    code, errors = end(runs.start("whole"))
    assert code == 0, errors
    for scene in (full, too_small):
        print(json.dumps(asdict(scene(runs))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
