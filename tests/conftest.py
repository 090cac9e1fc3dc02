"""Settings of every test: the CPU, no network, compiled programs kept between runs."""

from __future__ import annotations

import gc
import os
import socket
import sys
from pathlib import Path

import pytest

# Before anything imports JAX. A value from outside wins, so the suite can run on an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time is compilation, and code that is not optimised computes the same.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
KEPT = Path(__file__).parent.parent / ".pytest_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(KEPT / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Dozens of processes import JAX: 4 seconds each from its source, 2 from its bytecode. Who wants
# none in the tree gets it beside the compiled programs.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(KEPT / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
# What JAX keeps of each program is millions of objects, which the collector visits in vain.
gc.set_threshold(100_000)


LONGEST = ("test_readme.py", "test_sharding.py", "test_resume.py", "test_docs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker waits for another at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of frozen arrays and cases."""
    return Path(__file__).resolve().parent / "golden"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for another machine fails, here as on a machine without network."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if host not in ("", "localhost", "127.0.0.1", "::1"):
            raise OSError(f"a test tried to connect to {host}")
        connect(self, address)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
