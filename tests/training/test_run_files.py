"""The small files of a run: what a full disk, another run or a stranger's hand does to each."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import struct
import sys
from pathlib import Path

import jax
import pytest

from tests.room import no_room
from tests.training import toys
from unclip_jax.errors import UserError
from unclip_jax.training.goodput import Goodput
from unclip_jax.training.late_writes import ignore_late_writes
from unclip_jax.training.metrics import MetricWriter
from unclip_jax.training.profile import Profile
from unclip_jax.training.run_folder import check_same_run, write_description
from unclip_jax.training.run_lock import RunLock


def test_a_lock_needs_no_room(tmp_path: Path) -> None:
    with no_room(0), RunLock(tmp_path), pytest.raises(UserError, match=r"process unknown"):
        RunLock(tmp_path)


def test_a_lock_that_was_removed(tmp_path: Path) -> None:
    """Is taken again, or another run has it."""
    with RunLock(tmp_path) as lock:
        lock.keep()
        (tmp_path / "lock").unlink()
        lock.keep()
        with pytest.raises(UserError, match="in use by another run"):
            RunLock(tmp_path)
        (tmp_path / "lock").unlink()
        with RunLock(tmp_path), pytest.raises(UserError, match="in use by another run"):
            lock.keep()


@pytest.mark.parametrize("policy", ["stop", "go_on"])
def test_an_older_description_is_enough_to_go_on(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    recipe = toys.recipe("clip", checkpoint={"on_disk_full": policy})
    write_description(recipe, tmp_path, None, None)
    before = (tmp_path / "config.json").read_bytes()
    longer = toys.changed(recipe, steps=recipe.steps + 1)
    with no_room(100):
        if policy == "go_on":
            write_description(longer, tmp_path, None, None)
            assert "(File too large), the older one stays; training" in capsys.readouterr().err
        else:
            with pytest.raises(UserError, match=r"config.json \(File too large\)"):
                write_description(longer, tmp_path, None, None)
        with pytest.raises(UserError, match=r"config.json \(File too large\)"):
            write_description(longer, new, None, None)
    assert (tmp_path / "config.json").read_bytes() == before and os.listdir(new) == []
    assert check_same_run(longer, tmp_path) is None


def test_a_description_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("unclip_jax.training.run_folder.read_json", refuse)
    with pytest.raises(UserError, match=r"config.json cannot be read \(Permission denied\): use"):
        check_same_run(toys.recipe("clip"), tmp_path)


def metrics(folder: Path) -> list[float]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]


def test_metrics_wait_for_room(tmp_path: Path) -> None:
    """In the middle of a line, too; removing lines of a full disk needs none."""
    writer = MetricWriter(tmp_path, resume_step=0)
    writer.write(1, {"loss": 1.0})
    with no_room(40):
        writer.write(2, {"loss": 2.0})
        writer.write(3, {"loss": 3.0})
    writer.write(4, {"loss": float("nan")})
    writer.close()
    assert metrics(tmp_path) == [1, 2, 3, 4]
    with no_room(0):
        MetricWriter(tmp_path, resume_step=2).close()
    assert metrics(tmp_path) == [1, 2]


def test_damaged_metrics(tmp_path: Path) -> None:
    lines = [
        b'{"step": 1}',
        b"[" * 100_000,
        b'{"st',
        b'{"step": 2}',
        b'{"step": 3}',
        b'{"step": 2}',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    MetricWriter(tmp_path, resume_step=2).close()
    assert metrics(tmp_path) == [1, 2, 2]
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be continued .*: move it away"):
        MetricWriter(tmp_path, resume_step=0)


def test_events_wait_for_room(tmp_path: Path) -> None:
    """TensorBoard's file is whole when the disk was full in between, and does not name the host."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    writer = MetricWriter(tmp_path, resume_step=0, tensorboard=True)
    with no_room(50):
        for step in range(1, 30):
            writer.write(step, {"loss": step / 2})
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert ".tfevents." in path.name and socket.gethostname() not in path.name.split(".")
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        (length_sum,), body = struct.unpack("<I", data[8:12]), data[12 : 12 + length]
        (body_sum,) = struct.unpack("<I", data[12 + length : 16 + length])
        assert (length_sum, body_sum) == (masked_crc32c(data[:8]), masked_crc32c(body))
        found.append(event_pb2.Event.FromString(body))  # pyright: ignore
        data = data[16 + length :]
    assert found[0].file_version == "brain.Event:2"
    assert [event.step for event in found[1:]] == list(range(1, 30))
    assert found[9].summary.value[0].tag == "loss" and found[9].summary.value[0].simple_value == 4.5


@pytest.mark.parametrize("text", ["[" * 100_000, "5", '[{"last_step": "x"}]', "[3]"])
def test_a_ledger_that_is_none_is_begun_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "goodput.json").write_text(text)
    Goodput(tmp_path, 0, 0.0).write()
    assert len(json.loads((tmp_path / "goodput.json").read_text())) == 1


def test_a_profile_is_not_called_after_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a trace: the profiler's file is put there, with a name that is a pattern."""
    machine = "zz[host]*"
    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: Path(folder).mkdir())
    folder = tmp_path / "profile"
    ends = ("xplane.pb", "trace.json.gz")
    monkeypatch.setattr(
        jax.profiler,
        "stop_trace",
        lambda: [(folder / f"{machine}.{end}").touch() for end in (*ends, "zz")],
    )
    profile = Profile(folder, (3, 3))
    with profile.step(3):
        pass
    assert profile.end(3, 0.0)
    assert sorted(os.listdir(folder)) == sorted(f"process_0.{end}" for end in (*ends, "zz"))


def test_a_write_that_ends_late_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As TensorStore says it: to nobody, about nothing. Other words are still heard."""
    kinds: list[type] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: kinds.append(type(told)))

    class Failing:
        def __del__(self) -> None:
            raise ValueError

    Failing()
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    ignore_late_writes()
    ignore_late_writes()
    loop = asyncio.new_event_loop()
    loop.close()
    for call in (lambda: loop.call_soon_threadsafe(print), lambda: int("x")):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            call()
        sys.unraisablehook(kinds[0]((caught.type, caught.value, caught.tb, None, None)))
    told = capsys.readouterr().err
    assert "Event loop" not in told and "invalid literal" in told
