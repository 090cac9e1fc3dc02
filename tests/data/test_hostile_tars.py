"""Tar shards from strangers are indexed in bounded time and memory, and never extracted."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.data.hostile_tars import CASES, GOOD, KINDS, cuts, sample, write_members
from unclip_jax.data.tar_source import TarSource
from unclip_jax.errors import UserError

MEMBERS = 60_000
"""The fault suite has a million."""
MEASURE = """
import json, re, sys, time
from pathlib import Path
from unclip_jax.data.tar_source import TarSource
def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
Path("/proc/self/clear_refs").write_text("5")
before, began = memory("VmRSS"), time.process_time()
count = len(TarSource(sys.argv[1]))
print(json.dumps([count, time.process_time() - began, memory("VmHWM") - before]))
"""


def captions(path: Path) -> list[str]:
    source = TarSource(str(path))
    records = [source[index] for index in range(len(source))]
    assert all(record.image.startswith(b"\x89PNG") for record in records)
    return [caption for record in records for caption in record.captions]


@pytest.mark.parametrize("name", CASES)
def test_what_a_hostile_shard_gives(name: str, tmp_path: Path) -> None:
    make, expected = CASES[name]
    (tmp_path / "a.tar").write_bytes(make())
    assert captions(tmp_path / "a.tar") == expected
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_gives_the_whole_samples(
    kind: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tar"
    tried = 0
    for data, whole in cuts(kind):
        path.write_bytes(data)
        if whole:
            assert captions(path) == ["caption"] * whole, len(data)
        else:
            with pytest.raises(UserError):
                TarSource(str(path))
        tried += 1
    assert tried > 25
    assert "ends early" in capsys.readouterr().err


def test_many_members(tmp_path: Path) -> None:
    """Time and memory a member; of a million less than 60 s and 600 MB."""
    write_members(tmp_path / "a.tar", MEMBERS)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.tar")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    count, seconds, megabytes = json.loads(done.stdout)
    assert count == MEMBERS // 2
    assert seconds < 60 * MEMBERS / 1e6 * 2  # twice, for a machine that is busy
    assert megabytes < 600 * MEMBERS / 1e6


def test_several_shards_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(sample("x", "third"))
    (tmp_path / "a.tar").write_bytes(sample("y", "first") + sample("x", "second"))
    assert captions(tmp_path / "*.tar") == ["first", "second", "third"]


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
@pytest.mark.parametrize("folder", ["", "x" * 90 + "/" + "y" * 90 + "/"], ids=["short", "long"])
def test_names_that_are_not_utf_8_stay_different(form: int, folder: str, tmp_path: Path) -> None:
    """Latin-1's e with an acute and a grave accent."""
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for letter, caption in ((b"\xe9", b"acute"), (b"\xe8", b"grave")):
            for ending, data in ((".png", b"\x89PNG"), (".txt", caption)):
                member = tarfile.TarInfo(f"{folder}caf{os.fsdecode(letter)}{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    assert captions(tmp_path / "a.tar") == ["acute", "grave"]


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(GOOD)
    with pytest.raises(UserError, match=r"a\.tar: not a regular file"):
        TarSource(str(tmp_path / "*.tar"))


def test_a_hostile_shard_name_is_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\x1b[31m.tar"
    path.write_bytes(GOOD[:-512] + b"x")
    with pytest.raises(UserError):
        TarSource(str(path))
    assert "\x1b" not in capsys.readouterr().err
