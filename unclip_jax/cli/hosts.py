"""Which other processes a run has, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from unclip_jax.errors import UserError

HEARTBEAT = "UNCLIP_HEARTBEAT_SECONDS"
"""How long a process may be silent before the others end; JAX's own default is 100 seconds."""
_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class HostsUnreachable(UserError):
    """Another try may find them: exit code 75, EX_TEMPFAIL of sysexits.h."""

    exit_code = 75


def find_hosts(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments for `jax.distributed.initialize`; None where this process is alone.

    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID name the processes;
    else SLURM's tasks do, or the workers of a TPU pod, which JAX finds by itself.

    Raises:
        UserError: some of the three and not all, or numbers that are none.
    """
    given = {name: environment[name] for name in _EXPLICIT if environment.get(name)}
    if given:
        missing = [name for name in _EXPLICIT if name not in given]
        if missing:
            raise UserError(f"{next(iter(given))} is set without {missing[0]}: set all three")
        address, *numbers = given.values()
        if not all(number.isdecimal() for number in numbers) or ":" not in address:
            raise UserError(
                f"{', '.join(f'{name}={value}' for name, value in given.items())}: give host:port, "
                "how many processes there are, and which of them this is, from 0"
            )
        count, index = map(int, numbers)
        if index >= count:
            raise UserError(f"JAX_PROCESS_ID is {index} of {count} processes: count from 0")
        names = ("coordinator_address", "num_processes", "process_id")
        return dict(zip(names, (address, count, index), strict=True))
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1"
    workers = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    is_slurm = "SLURM_JOB_ID" in environment and tasks.isdecimal() and int(tasks) > 1
    return {} if is_slurm or len(workers) > 1 or slices not in ("", "1") else None


def join_hosts() -> None:
    """Start JAX's coordination, if there is somebody to coordinate with.

    Raises:
        HostsUnreachable: the others do not answer.
        UserError: the environment is not as `find_hosts` asks.
    """
    arguments = find_hosts(os.environ)
    if arguments is None:
        return
    heartbeat = os.environ.get(HEARTBEAT)
    if heartbeat is not None:
        if not heartbeat.isdecimal() or int(heartbeat) < 1:
            raise UserError(f"{HEARTBEAT} is {heartbeat!r}: give whole seconds, such as 30")
        arguments["heartbeat_timeout_seconds"] = int(heartbeat)
    import jax

    # It would take SIGTERM for itself: from here until training listens, the signal ends nothing.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise HostsUnreachable(
            f"the other processes cannot be reached ({reason}): check the address, and that all of "
            "them were started"
        ) from error
