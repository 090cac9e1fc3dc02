"""Commands in a machine without network and with a name of its own, where Linux lends one.

Where it does not, every connection to another address than a socket file fails instead.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HOST = "zz-the-host-zz"
REFUSE = """
import socket
def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        raise OSError(f"no network: {address}")
    return connect(self, address, *rest)
connect, socket.socket.connect = socket.socket.connect, refuse
def lookup(*names, **options):
    raise OSError(f"no network: {names}")
socket.getaddrinfo = socket.gethostbyname = lookup
socket.gethostname = lambda: "%s"
"""


@cache
def has_namespaces() -> bool:
    """This machine lends a network namespace without routes."""
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", "-rnu", "hostname", HOST], capture_output=True)
    return done.returncode == 0


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    returncode: int
    output: str
    """Both of its streams."""


def run_offline(
    command: Sequence[str], *, folder: Path, scratch: Path, environment: Mapping[str, str]
) -> Done:
    """Run `command` in `folder`, on a machine called `HOST`, without network.

    Args:
        scratch: an empty folder, for what stands in for a namespace.
        environment: all of it; PYTHONPATH may be changed.
    """
    changed = dict(environment)
    if has_namespaces():
        script = 'hostname "$0" && exec "$@"'
        command = ["unshare", "-rnu", "sh", "-c", script, HOST, *command]
    else:
        (scratch / "sitecustomize.py").write_text(REFUSE % HOST)
        changed["PYTHONPATH"] = f"{scratch}:{changed.get('PYTHONPATH', '')}"
    done = subprocess.run(
        command, cwd=folder, env=changed, capture_output=True, text=True, timeout=300
    )
    return Done(done.returncode, done.stdout + done.stderr)
