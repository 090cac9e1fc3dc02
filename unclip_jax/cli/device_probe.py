"""Asks JAX for its devices in a process of its own: a driver may block, or end the process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

TIMED_OUT = "found no device"
_LOGGED = re.compile(r"^[A-Z]\d{4} [\d:.]+ +\d+ [\w./]+:\d+\] ")
"""Time, process and source line before what XLA logs."""
_PROGRAM = """
import json, jax
found = []
for device in jax.local_devices():
    stats = device.memory_stats() or {}
    found.append({
        "platform": device.platform,
        "kind": device.device_kind,
        "bytes_limit": stats.get("bytes_limit", 0),
        "bytes_in_use": stats.get("bytes_in_use", 0),
    })
assert jax.jit(lambda x: x + x)(3).item() == 6, "the device computes 3 + 3 wrongly"
print("\\n" + json.dumps(found))
"""


def probe_devices(timeout: float) -> list[dict[str, Any]] | str:
    """platform, kind, bytes_limit and bytes_in_use of each device, or why there are none.

    Args:
        timeout: seconds.
    """
    # A GPU's memory is not taken whole: someone may be computing on it.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"JAX {TIMED_OUT} in {timeout:g} seconds; another process may hold it"
    except OSError as error:
        return f"Python cannot be started ({error.strerror})"
    if result.returncode:
        lines = [_LOGGED.sub("", line).strip() for line in result.stderr.splitlines()]
        lines = [line for line in lines if line]
        said = lines[-1] if lines else "without a word"
        return f"JAX does not start (exit code {result.returncode}): {said[:300]}"
    return json.loads(result.stdout.splitlines()[-1])
