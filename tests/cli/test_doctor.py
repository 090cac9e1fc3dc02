"""unclip doctor: what it finds, what it says about what is wrong, and what it keeps to itself."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from unclip_jax.cli import device_probe, doctor, health
from unclip_jax.cli import main as command_line

CPU = [{"platform": "cpu", "kind": "cpu", "bytes_limit": 0, "bytes_in_use": 0}]
GPU = {"platform": "gpu", "kind": "NVIDIA H100", "bytes_limit": 60 * 10**9}
Probe = Callable[[float], Any]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine where all is well, without the seconds that a process with JAX takes."""
    monkeypatch.setattr(health, "probe_devices", lambda timeout: CPU)
    for name in ("JAX_DISABLE_JIT", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 0, 10**12))
    read = health._read
    here = {"/proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n"}
    here |= {"/sys/fs/cgroup/memory.max": "max"}
    monkeypatch.setattr(health, "_read", lambda path: here.get(path) or read(path))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and output."""
    with pytest.raises(SystemExit) as end:
        command_line.main(["doctor", *arguments])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert isinstance(end.value.code, int)
    return end.value.code, captured.out


def problems(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Remedies by name, from the JSON; the exit code says the same."""
    code, text = run(capsys, "--json")
    found = json.loads(text)
    wrong = {row["name"]: row["remedy"] for row in found["checks"] if row["state"] == "problem"}
    assert (code, found["ok"]) == ((1, False) if wrong else (0, True))
    assert all(wrong.values()), "a problem without its remedy"
    return wrong


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys)
    assert code == 0 and text.endswith("all well\n")
    for name in ("python", "jax", "jaxlib", "flax", "orbax-checkpoint", "grain", "tyro", "pillow"):
        assert f"\n  {name} " in f"\n{text}", name
    for name in ("devices", "memory", "compile cache", "disk", "open files", "model emoji"):
        assert f"\n  {name} " in text, name


def test_names_nobody(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada-l")
    monkeypatch.setattr(socket, "gethostname", lambda: "engine7")
    monkeypatch.setenv("HOME", "/home/ada-l")
    monkeypatch.setenv("UNCLIP_CACHE", "/home/ada-l/cache")
    monkeypatch.setenv("JAX_NOTE", "on engine7, in /data/ada-l/x; adaptive")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.1.2.3:999")
    for arguments in ([], ["--json"]):
        _, text = run(capsys, *arguments)
        assert "~/cache/xla" in text and "on HOST, in /data/USER/x; adaptive" in text
        assert not any(secret in text for secret in ("ada-l", "engine7", "10.1.2.3"))


@pytest.mark.parametrize(
    ("said", "environment", "remedy"),
    [
        ("JAX does not start (exit code 1): Unknown flag in XLA_FLAGS: --x", {}, "unset XLA_FLAGS"),
        ("JAX does not start (exit code 1)", {"JAX_PLATFORMS": "cuda"}, "unset JAX_PLATFORMS"),
        ("JAX found no device in 9 seconds", {}, "--timeout 600"),
        ("JAX does not start (exit code 1): no module", {}, "pip install -U jax"),
    ],
)
def test_no_device(
    said: str,
    environment: dict[str, str],
    remedy: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "probe_devices", lambda timeout: said)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert remedy in problems(capsys)["devices"]


def test_device_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    used = [{**GPU, "bytes_in_use": 0}, {**GPU, "bytes_in_use": 59 * 10**9}]
    monkeypatch.setattr(health, "probe_devices", lambda timeout: used[:1])
    _, text = run(capsys)
    assert "1 × gpu (NVIDIA H100)" in text and "60.0 GB free of 60.0 GB" in text
    monkeypatch.setattr(health, "probe_devices", lambda timeout: used)
    assert problems(capsys) == {"device memory": "end what else uses the device"}


@pytest.mark.parametrize("hidden", [None, "cpu"])
def test_gpu_that_is_not_used(
    hidden: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidiactl" or exists(path))
    if hidden:
        monkeypatch.setenv("JAX_PLATFORMS", hidden)
    remedy = problems(capsys)["devices"]
    assert ("unset JAX_PLATFORMS" if hidden else "'unclip_jax[cuda]'") in remedy


def test_little_memory_and_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n",
        "/sys/fs/cgroup/memory.max": "4000000000\n",
        "/sys/fs/cgroup/memory.current": "3500000000\n",
    }
    monkeypatch.setattr(health, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 10**12, 10**6))
    found = problems(capsys)
    assert set(found) == {"memory", "disk"}
    assert "0.5 GB free of 4.0 GB" in run(capsys)[1]  # the container's, not the machine's
    assert "drawing needs 2 GB" in found["memory"] and "free some space" in found["disk"]


def test_limits_and_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    limits = {resource.RLIMIT_NOFILE: (256, 4096), resource.RLIMIT_FSIZE: (-1, -1)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setenv("JAX_DISABLE_JIT", "1")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    found = problems(capsys)
    assert found["open files"] == "ulimit -n 1024"
    assert "unset JAX_DISABLE_JIT" in found["JAX_DISABLE_JIT"]
    assert set(found) == {"open files", "JAX_DISABLE_JIT"}
    assert "note: made for tests" in run(capsys)[1]


def test_versions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "grain":
            raise metadata.PackageNotFoundError(name)
        return {"pillow": "11.0.0", "orbax-checkpoint": "2.0"}.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = problems(capsys)
    assert set(found) == {"grain", "pillow", "orbax-checkpoint"}
    assert found["pillow"] == "pip install -U 'pillow>=12.2'"


@pytest.mark.parametrize(
    ("version", "bounds", "met"),
    [
        ("12.2", ">=12.2", True),
        ("12.2.0", ">=12.2", True),
        ("12.10", ">=12.2", True),
        ("12.1.9", ">=12.2", False),
        ("1.9", "<2,>=0.12.8", True),
        ("2.0", "<2,>=0.12.8", False),
        ("0.12.7", "<2,>=0.12.8", False),
        ("2.13.0+cpu", ">=2.10", True),
        ("1.0", "", True),
    ],
)
def test_is_met(version: str, bounds: str, met: bool) -> None:
    assert health.is_met(version, bounds) is met


def test_damaged_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = tmp_path / "assets" / "models" / "emoji" / "clip"
    monkeypatch.setattr(health.resources, "files", lambda name: tmp_path)
    assert "train_emoji.sh" in problems(capsys)["model emoji"]
    stage.mkdir(parents=True)
    (stage / "config.json").write_text("{}")
    header = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    whole = len(header).to_bytes(8, "little") + header + bytes(8)
    (stage / "model.safetensors").write_bytes(whole)
    assert problems(capsys) == {}
    for damaged in (whole[:-1], b"", b"\xff" * 40, (2).to_bytes(8, "little") + b"{}"):
        (stage / "model.safetensors").write_bytes(damaged)
        assert set(problems(capsys)) == {"model emoji"}


def test_cache_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNCLIP_CACHE", "/proc/no/cache")
    assert "set UNCLIP_CACHE" in problems(capsys)["compile cache"]


def test_nothing_is_left_behind(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("raise ValueError('broken driver')", "broken driver"),
        ("import time; time.sleep(60)", "found no device in 1 seconds"),
        ("print('noise'); print('[{}]')", None),
    ],
)
def test_probe(program: str, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that ends or blocks the process does not take the doctor with it."""
    monkeypatch.setattr(device_probe, "_PROGRAM", program)
    found = device_probe.probe_devices(1 if "sleep" in program else 30)
    assert found == [{}] if said is None else isinstance(found, str) and said in found


def test_probe_of_this_machine() -> None:
    found = device_probe.probe_devices(120)
    assert isinstance(found, list) and found[0]["platform"]


def test_home_is_hidden_only_as_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    monkeypatch.setattr(socket, "gethostname", lambda: "c")
    monkeypatch.setenv("HOME", "/")
    assert doctor.anonymous("root of c: /x \x1b[2J") == "root of c: /x \\x1b[2J"
