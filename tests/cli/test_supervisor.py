"""Which ends are followed by another start."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unclip_jax.cli import supervisor
from unclip_jax.cli.supervisor import supervise, without


def script(folder: Path, body: str) -> list[str]:
    """A command that first notes that it was started."""
    note = f"import os, sys, time\nopen({str(folder / 'starts')!r}, 'a').write('x')\n"
    note += f"starts = len(open({str(folder / 'starts')!r}).read())\n"
    (folder / "script.py").write_text(note + body)
    return [sys.executable, str(folder / "script.py")]


@pytest.mark.parametrize(
    ("body", "code", "starts"),
    [
        ("sys.exit(0)", 0, 1),
        ("sys.exit(2)", 2, 1),
        ("sys.exit(3)", 3, 1),
        ("os.kill(os.getpid(), 9) if starts < 3 else sys.exit(0)", 0, 3),
        ("sys.exit(75)", 75, 4),
        ("os.abort()", 128 + signal.SIGABRT, 4),
    ],
)
def test_ends(
    body: str, code: int, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(supervisor, "_pause", lambda seconds, stopped: pauses.append(seconds))
    assert supervise(script(tmp_path, body), 3) == code
    assert (tmp_path / "starts").read_text() == "x" * starts
    assert pauses == [1.0, 2.0, 4.0][: starts - 1]


def test_a_signal_is_passed_on_once_and_is_the_end(tmp_path: Path, repository: Path) -> None:
    body = "import signal\nseen = []\n"
    body += "signal.signal(15, lambda *_: seen.append(1))\nprint('ready', flush=True)\n"
    body += "deadline = time.time() + 1.5\nwhile time.time() < deadline: time.sleep(0.05)\n"
    body += "sys.exit(1 if len(seen) == 1 else 99)\n"
    command = script(tmp_path, body)
    program = "from unclip_jax.cli.supervisor import supervise\n"
    program += f"raise SystemExit(supervise({command!r}, 5))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=repository, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(timeout=30) == 1 and time.monotonic() - began < 20
    assert (tmp_path / "starts").read_text() == "x"


def supervised(command: list[str], repository: Path, before: str = "") -> subprocess.Popen[str]:
    """`supervise(command, 5000)` in a process of its own, after the lines `before`."""
    program = f"from unclip_jax.cli import supervisor\n{before}\n"
    program += f"raise SystemExit(supervisor.supervise({command!r}, 5000))"
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=repository, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_pause(number: int, code: int, tmp_path: Path, repository: Path) -> None:
    before = "pause = supervisor._pause\n"
    before += "supervisor._pause = lambda seconds, stopped: pause(600, stopped)"
    process = supervised(script(tmp_path, "os._exit(75)"), repository, before)
    assert process.stderr is not None and "again in 1 s" in process.stderr.readline()
    process.send_signal(number)
    began = time.monotonic()
    assert process.wait(timeout=60) == code and time.monotonic() - began < 5
    assert (tmp_path / "starts").read_text() == "x"


def test_a_signal_while_the_run_is_being_started_is_passed_on(
    tmp_path: Path, repository: Path
) -> None:
    """It comes when the process is there and the supervisor does not know it yet."""
    before = "import os, subprocess\nstart = subprocess.Popen\n"
    before += "def popen(*a, **k):\n    child = start(*a, **k)\n    os.kill(os.getpid(), 15)\n"
    before += "    return child\nsubprocess.Popen = popen"
    process = supervised(script(tmp_path, "time.sleep(60)"), repository, before)
    assert process.wait(timeout=30) == 143


def test_a_pause_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the run has died."""
    pauses: list[float] = []
    monkeypatch.setattr(supervisor, "_run", lambda command, stopped: 75)
    monkeypatch.setattr(supervisor, "_pause", lambda seconds, stopped: pauses.append(seconds))
    assert supervise(["x"], 2000) == 75
    assert pauses[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0] and max(pauses) == 60


def test_the_flag_does_not_reach_the_run() -> None:
    command = ["train.py", "a.py", "--restarts", "3", "--steps", "5"]
    assert without(command, "--restarts") == ["train.py", "a.py", "--steps", "5"]
    assert without(["x", "--restarts=3", "y"], "--restarts") == ["x", "y"]
    assert without(["x"], "--restarts") == ["x"]
