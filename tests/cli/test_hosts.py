"""Who is in a run, read from environments of SLURM, TPU pods and explicit addresses."""

from __future__ import annotations

import pytest

from unclip_jax.cli.hosts import find_hosts
from unclip_jax.errors import UserError

HERE = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


def test_explicit_addresses() -> None:
    expected = {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1}
    assert find_hosts(HERE) == expected
    assert find_hosts(HERE | {"SLURM_JOB_ID": "3", "SLURM_NTASKS": "8"}) == expected


@pytest.mark.parametrize(
    ("environment", "is_several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "3"}, False),
        ({"SLURM_JOB_ID": "3", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "3", "SLURM_NTASKS": "4"}, True),
        ({"SLURM_JOB_ID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_what_jax_finds_by_itself(environment: dict[str, str], is_several: bool) -> None:
    assert find_hosts(environment) == ({} if is_several else None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "without JAX_PROCESS_ID"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "without JAX_COORDINATOR_ADDRESS"),
        ({"JAX_NUM_PROCESSES": "two"}, "how many processes"),
        ({"JAX_COORDINATOR_ADDRESS": "a"}, "host:port"),
        ({"JAX_PROCESS_ID": "2"}, "count from 0"),
    ],
)
def test_half_an_address_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_hosts(HERE | changes)
