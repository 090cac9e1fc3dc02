"""A toy is trained, exported and sampled without network, and no file says where or by whom."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import offline
from tests.training import toys

USER = "zz-the-user-zz"


def environment(repository: Path, home: Path) -> dict[str, str]:
    changed = {key: value for key, value in os.environ.items() if "PROXY" not in key.upper()}
    changed |= {"HOME": str(home), "USER": USER, "LOGNAME": USER, "PYTHONPATH": str(repository)}
    changed.pop("HF_HUB_OFFLINE", None)  # the package must not need it
    return changed


COMMANDS = {
    "import": ["-c", "import unclip_jax; print(unclip_jax.UnCLIP)"],
    "plan": ["-m", "unclip_jax", "plan", "--help"],
    "train": [
        *("{root}/train.py", "{root}/configs/toy/clip.py", "--workdir", "runs/clip"),
        *("--steps", "1", "--data.source", "{work}/pictures"),
        *("--log.tensorboard", "True", "--profile-steps", "1:1"),
    ],
    "export": ["-m", "unclip_jax", "export", "--clip", "runs/clip", "--out", "model"],
    "sample": [
        *("{root}/sample.py", "text", "a red apple", "--steps", "1", "--prior-steps", "1"),
        *("--num-images", "1", "--candidates", "1", "--batch-size", "1", "--out", "out"),
    ],
}


@pytest.fixture(scope="module")
def made(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the commands ran in."""
    root = tmp_path_factory.mktemp("zz-the-place-zz")
    (root / "zz-the-home-zz").mkdir()
    (root / "scratch").mkdir()
    work = root / "work"
    toys.write_pictures(work / "pictures")
    for name, arguments in COMMANDS.items():
        done = offline.run_offline(
            [sys.executable, *(one.format(root=repository, work=work) for one in arguments)],
            folder=work,
            scratch=root / "scratch",
            environment=environment(repository, root / "zz-the-home-zz"),
        )
        assert done.returncode == 0, f"{name}: {done.output[-2000:]}"
    return work


def test_every_command_works_offline(made: Path) -> None:
    assert (made / "runs/clip/checkpoints/1").is_dir()
    assert (made / "model/clip/model.safetensors").is_file()
    assert len(list((made / "out").glob("*.png"))) == 2
    print("in a network namespace" if offline.has_namespaces() else "with connections refused")


def test_no_file_says_where_or_by_whom(made: Path, repository: Path) -> None:
    """No user, host, home or absolute path in any name or byte that was written.

    Two exceptions: a run's own config.json has the paths that were given, to go on with, and a
    profile has what the profiler saw.
    """
    names = ["zz-the-place-zz", "zz-the-home-zz", USER, offline.HOST, str(repository), sys.prefix]
    files = [path for top in ("runs", "model", "out") for path in (made / top).rglob("*")]
    files = [path for path in files if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".png", ".json", ".jsonl", ".safetensors", ".md", ".pb", ".run"} <= kinds
    found = []
    for path in files:
        place = path.relative_to(made).as_posix()
        is_told = place.startswith("runs/clip/profile/")
        for name in names:
            count = path.read_bytes().count(name.encode())
            if place == "runs/clip/config.json" and name == "zz-the-place-zz":
                count -= 1  # data.source
            if name in place or (count and not is_told):
                found.append(f"{place} holds {name}")
    assert found == []


def test_offline_is_offline(repository: Path, tmp_path: Path) -> None:
    """The commands above had no network: this one asks for it, and fails."""
    ask = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    done = offline.run_offline(
        [sys.executable, "-c", ask],
        folder=tmp_path,
        scratch=tmp_path,
        environment=environment(repository, tmp_path),
    )
    assert done.returncode == 1
    assert "unreachable" in done.output or "no network" in done.output
    ask = "import socket; print(socket.gethostname())"
    done = offline.run_offline(
        [sys.executable, "-c", ask],
        folder=tmp_path,
        scratch=tmp_path,
        environment=environment(repository, tmp_path),
    )
    assert done.output.strip() == offline.HOST
