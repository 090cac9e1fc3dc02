"""What may happen to a sampling job: kills, signals, and disks and folders that fail.

The job is `sample.py text` of a tiny random model. After every fault the same command is run again
and must leave exactly the files of a job that nothing happened to, byte for byte.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.outcome import Outcome

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PROMPTS = ("a red apple", "a blue car", "a green tree")
FLAGS = ("--num-images", "12", "--batch-size", "2", "--steps", "6", "--prior", "none")
COUNT = len(PROMPTS) * 12
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
}
"""As in tests/conftest.py; what is set outside wins."""
Process = subprocess.Popen[str]


@dataclass(frozen=True)
class Job:
    """The command, and what it must leave."""

    folder: Path
    whole: dict[str, bytes]

    @staticmethod
    def make(folder: Path) -> Job:
        """A tiny model in `folder`, and the job without any fault."""
        # Here, so that the environment below is set before anything imports JAX.
        from tests.generation.test_all_stages import stage
        from unclip_jax.training.weights import save_stage

        clip = stage("clip")
        save_stage(clip, folder / "model" / "clip", "float32")
        save_stage(stage("decoder", clip.clip_id), folder / "model" / "decoder", "float32")
        (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
        job = Job(folder, {})
        job.complete(folder / "whole", compared=False)
        job.whole.update(files(folder / "whole"))
        assert len(job.whole) == len(set(job.whole.values())) == COUNT + 2
        return job

    def command(self, out: Path) -> list[str]:
        prompts = ("--prompts", str(self.folder / "prompts.txt"))
        model = ("--model", str(self.folder / "model"))
        return [sys.executable, "sample.py", "text", *prompts, *model, *FLAGS, "--out", str(out)]

    def begin(self, out: Path, wrapped_in: tuple[str, ...] = ()) -> Process:
        cache = {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "xla")}
        return subprocess.Popen(
            [*wrapped_in, *self.command(out)],
            cwd=REPOSITORY,
            env={**ENVIRONMENT, **os.environ, **cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def complete(self, out: Path, *, compared: bool = True) -> float:
        """Run it to its end; the seconds until the first new picture."""
        before, began = len(pictures(out)), time.monotonic()
        process = self.begin(out)
        while process.poll() is None and len(pictures(out)) <= before:
            time.sleep(0.01)
        seconds = time.monotonic() - began
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, f"the job ended with {process.returncode}: {errors}"
        if compared:
            assert f"({before} kept, {COUNT - before} drawn, 0 replaced)" in said, said
            self.check(out, is_whole=True)
        return seconds

    def check(self, out: Path, *, is_whole: bool = False) -> None:
        """Nothing is half-written or of other bytes; and if `is_whole`, nothing else is there."""
        found = files(out) if is_whole else pictures(out)
        odd = [name for name in found if found[name] != self.whole.get(name)]
        assert not odd, f"{odd[0]} differs from an uninterrupted job's ({len(odd)} in all)"
        assert not is_whole or len(found) == len(self.whole), f"{len(found)} files"

    def wait(self, process: Process, out: Path, count: int) -> None:
        """Until `count` pictures are there."""
        while len(pictures(out)) < count and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()


def files(folder: Path) -> dict[str, bytes]:
    """All files by name; none where there is no folder."""
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pictures(folder: Path) -> dict[str, bytes]:
    """Finished ones, without the grid."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith("0")]
    except OSError:
        return {}
    return {name: (folder / name).read_bytes() for name in names}


def try_faults(rounds: int, folder: Path) -> Iterator[Outcome]:
    """Every fault, the kill `rounds` times."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    job = Job.make(folder)
    yield killed(job, rounds)
    for number in (signal.SIGTERM, signal.SIGINT):
        yield tried(f"{number.name} while it draws", lambda n=number: stopped(job, n))
        yield tried(f"{number.name} while it compiles", lambda n=number: stopped_early(job, n))
    yield tried("a limit on the size of a file", lambda: file_too_large(job))
    if can_mount():
        yield tried("disk full", lambda: disk_full(job))
        yield tried("folder on a disk that is read-only", lambda: disk_read_only(job))
    else:
        yield Outcome("disk full, read-only disk", 0, 0, note="not tried: no mounts here")
    yield tried("folder deleted while it draws", lambda: taken_away(job, "deleted"))
    yield tried("folder emptied while it draws", lambda: taken_away(job, "emptied"))
    yield tried("folder replaced by a file", lambda: taken_away(job, "a file"))
    yield tried("folder under a file", lambda: under_a_file(job))


def tried(fault: str, check: Callable[[], float | None]) -> Outcome:
    """Once; an AssertionError says what did not hold."""
    try:
        return Outcome(fault, 1, 1, None, check(), "the rerun's files are byte-equal")
    except AssertionError as error:
        return Outcome(fault, 1, 0, note=" ".join(str(error).split())[:300])


def killed(job: Job, rounds: int) -> Outcome:
    """SIGKILL at random points, several of one job, until it is run to its end."""
    draw, done, survived, slowest, in_write, failure = random.Random(rounds), 0, 0, 0.0, 0, ""
    for number in itertools.count():
        if done >= rounds:
            break
        out, kills = job.folder / f"killed-{number}", 0
        try:
            while kills < min(rounds - done, 4) and len(pictures(out)) < COUNT - 2:
                kills += kill_once(job, out, draw)
                in_write += any(name.startswith(".") for name in listed(out))
                job.check(out)
            slowest = max(slowest, job.complete(out))
            survived += kills
        except AssertionError as error:
            failure = " ".join(str(error).split())[:300]
            kills = max(kills, 1)
        done += kills
    note = f"every file byte-equal to an uninterrupted job's, none else; {in_write} inside a write"
    return Outcome("kill -9 while it samples", rounds, survived, None, slowest, failure or note)


def kill_once(job: Job, out: Path, draw: random.Random) -> bool:
    """At a random time of the start, at a random number of pictures, or inside a write; whether it
    came before the end."""
    process, there = job.begin(out), len(pictures(out))
    point = draw.choice(("time", "count", "write"))
    if point == "time":
        time.sleep(draw.uniform(0, 4))
    elif point == "count":
        job.wait(process, out, draw.randint(there + 1, COUNT - 1))
    else:
        old = set(listed(out))
        while process.poll() is None and not any(n[0] == "." for n in set(listed(out)) - old):
            pass  # the file is there for half a millisecond
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def stopped(job: Job, number: signal.Signals) -> float:
    """A signal while it draws: what was drawn stays, and one line says how much."""
    out = job.folder / f"stopped-{number.name}"
    process = job.begin(out)
    job.wait(process, out, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, f"exit code {process.returncode}: {errors}"
    count = len(pictures(out))
    said = f"stopped by {number.name}: {count} of {COUNT} pictures are in {out}, the same command"
    assert said in errors.splitlines()[-1] and count < COUNT, errors
    assert "Traceback" not in errors and not any(name.startswith(".") for name in listed(out))
    job.check(out)
    return job.complete(out)


def stopped_early(job: Job, number: signal.Signals) -> float:
    """A signal before there is a picture ends it at once, also inside the compiler."""
    out = job.folder / f"early-{number.name}"
    process = job.begin(out)
    assert process.stderr is not None
    while "compiling" not in process.stderr.readline():
        assert process.poll() is None, "it ended before it compiled"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, f"exit code {process.returncode}: {errors}"
    assert errors == "stopped: the same command continues\n", errors
    assert not pictures(out), "it went on to draw"
    return job.complete(out)


def ended(process: Process, *words: str) -> None:
    """It ends soon with exit code 2 and one line that has `words` and says what to do."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, f"exit code {process.returncode}: {errors}"
    says_why(errors, *words)


def says_why(errors: str, *words: str) -> None:
    """Progress, and then one line of an error."""
    lines = errors.splitlines()
    assert "Traceback" not in errors and lines[-1].startswith("error: "), errors
    assert sum(line.startswith("error") for line in lines) == 1, errors
    missing = [word for word in words if word not in lines[-1]]
    assert not missing, f"{missing[0]!r} is not in {lines[-1]!r}"


def file_too_large(job: Job) -> float:
    """Every picture stops after its first 512 bytes."""
    out = job.folder / "limited"
    limit = ("sh", "-c", 'ulimit -f 1; exec "$@"', "sh")
    ended(job.begin(out, limit), str(out), "File too large", "again: it continues")
    assert files(out) == {}, f"{sorted(files(out))[0]} is left over"
    return job.complete(out)


NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")


def can_mount() -> bool:
    """Whether a process of ours may have mounts of its own."""
    try:
        test = [*NAMESPACE, "mount -t tmpfs none /mnt"]
        return subprocess.run(test, capture_output=True, timeout=10).returncode == 0
    except OSError:
        return False


def disk_full(job: Job) -> None:
    """After a few pictures."""
    remedy = "free some space and run the same command again: it continues"
    on_a_disk(job, "size=48k", "No space left on device", remedy)


def disk_read_only(job: Job) -> None:
    """From the start."""
    on_a_disk(job, "ro", "is read-only", "name another folder")


def on_a_disk(job: Job, options: str, *words: str) -> None:
    """A disk that fails, and is mended (larger, writable) before the rerun."""
    out, log = job.folder / "disk", job.folder / "log"
    for folder in (out, log):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    script = (
        'out=$1; log=$2; shift 2; mount -t tmpfs none "$out" || exit 9; '
        f'mount -o remount,{options} "$out" || exit 9; '
        '"$@" 2>"$log/errors"; echo $? >"$log/code"; cp -a "$out" "$log/first"; '
        'mount -o remount,rw,size=64m "$out" || exit 9; "$@" >"$log/said" 2>&1; code=$?; '
        'cp -a "$out" "$log/second"; exit $code'
    )
    command = [*NAMESPACE, script, "sh", str(out), str(log), *job.command(out)]
    environment = {**ENVIRONMENT, **os.environ}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(job.folder / "xla")
    code = subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=120).returncode
    assert (log / "code").read_text().strip() == "2", (log / "errors").read_text()
    says_why((log / "errors").read_text(), str(out), *words)
    first = pictures(log / "first")
    first_names = set(files(log / "first")) - {"manifest.jsonl"}
    assert first_names == set(first), "something half-written is left over"
    assert (len(first) > 0) == options.startswith("size"), f"{len(first)} pictures"
    job.check(log / "first")
    assert code == 0, (log / "said").read_text()
    assert f"({len(first)} kept, " in (log / "said").read_text()
    job.check(log / "second", is_whole=True)


def taken_away(job: Job, how: str) -> float:
    """The folder, from a job that stands still meanwhile."""
    out = job.folder / f"taken-{how.replace(' ', '-')}"
    process = job.begin(out)
    job.wait(process, out, 3)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # a thread may still be renaming a picture
    shutil.rmtree(out)
    if how == "emptied":
        out.mkdir()
    if how == "a file":
        out.write_text("x")
    process.send_signal(signal.SIGCONT)
    ended(process, str(out), "run the same command again")
    if how == "a file":
        assert out.read_text() == "x"
        ended(job.begin(out), str(out), "is a file: name a folder")
        out.unlink()
    job.check(out)
    return job.complete(out)


def under_a_file(job: Job) -> None:
    """Said before the model is loaded."""
    (job.folder / "file").write_text("x")
    ended(job.begin(job.folder / "file" / "out"), str(job.folder / "file"), "name another folder")
