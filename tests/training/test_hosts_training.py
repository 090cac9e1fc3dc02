"""Two processes of two devices each, joined by JAX, train as one process of four.

The processes are train.py's; see `hosts_run` for what differs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from tests.training import toys
from unclip_jax.training import loop
from unclip_jax.training.checkpoint import newest_step
from unclip_jax.training.step_log import SPEEDS
from unclip_jax.training.weights import flatten

STEPS = 20
OVERRIDES = ("--mesh.fsdp", "4", "--log.every", "1", "--log.preview_every", str(STEPS))
# The paper's for the prior. At the toy's 1e-3, twenty steps make 2e-6 of rounding.
OVERRIDES += ("--optim.learning_rate", "1.1e-4", "--optim.eps", "1e-6")


class Hosts:
    """Starts runs of a toy prior in `folder`, in one process or several."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder, self.repository = folder, repository
        toys.write_pictures(folder / "pictures")
        loop.train(toys.on_folder("clip", folder, 1), folder / "clip")

    def start(
        self, name: str, *overrides: str, processes: int = 2, fail_at: int | None = None
    ) -> list[subprocess.Popen[str]]:
        """The processes; the last of them fails at its `fail_at`-th batch."""
        command = [sys.executable, "-m", "tests.training.hosts_run", "configs/toy/prior.py"]
        command += ["--workdir", str(self.folder / name), "--clip", str(self.folder / "clip")]
        command += ["--data.source", str(self.folder / "pictures"), *OVERRIDES, *overrides]
        shared = os.environ | {
            "JAX_NUM_CPU_DEVICES": str(4 // processes),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
        }
        if processes > 1:
            shared["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{_free_port()}"
            shared["JAX_NUM_PROCESSES"] = str(processes)
        started = []
        for index in range(processes):
            env = shared | ({"JAX_PROCESS_ID": str(index)} if processes > 1 else {})
            if fail_at is not None and index == processes - 1:
                env["FAIL_AT_BATCH"] = str(fail_at)
            started.append(
                subprocess.Popen(
                    command, cwd=self.repository, env=env, stderr=subprocess.PIPE, text=True
                )
            )
        return started

    def run(self, *arguments: Any, **options: Any) -> tuple[list[int], list[str]]:
        return end(self.start(*arguments, **options))

    def rows(self, name: str) -> list[dict[str, float]]:
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k not in SPEEDS} for x in lines]

    def state(self, name: str, step: int) -> dict[str, np.ndarray]:
        """Every array of a checkpoint, whole, by its path."""
        path = (self.folder / name / "checkpoints" / str(step)).absolute()
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = ocp.checkpointables_metadata(path).metadata["state"]
        whole = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
        )
        return flatten(ocp.load_checkpointables(path, {"state": whole})["state"])

    def files(self, name: str) -> set[str]:
        """What the run folder holds, without the inner files of checkpoints."""
        folder = self.folder / name
        found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        return {path for path in found if not path.startswith("checkpoints/")} | {
            f"checkpoints/{path.name}" for path in (folder / "checkpoints").iterdir()
        }


def end(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors; none is left behind."""
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Hosts:
    """With the runs `two`, of two processes, and `one`, both of 20 steps."""
    hosts = Hosts(tmp_path_factory.mktemp("hosts"), repository)
    codes, errors = hosts.run("two")
    assert codes == [0, 0], errors
    assert "step 20: saved in" in errors[0]
    assert not [line for line in errors[1].splitlines() if "Gloo" not in line]  # JAX's own words
    codes, errors = hosts.run("one", processes=1)
    assert codes == [0], errors
    return hosts


def test_metrics_are_those_of_one_process(hosts: Hosts) -> None:
    one, two = hosts.rows("one"), hosts.rows("two")
    assert [row["step"] for row in one] == [row["step"] for row in two] == [*range(1, STEPS + 1)]
    for name in one[0]:
        mine, theirs = ([row[name] for row in rows] for rows in (one, two))
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, err_msg=name)


def test_the_run_folder_is_that_of_one_process(hosts: Hosts) -> None:
    files = hosts.files("two")
    assert {"metrics.jsonl", "config.json", "tokenizer.json", "checkpoints/20"} <= files
    assert files == hosts.files("one")


def test_previews_get_the_whole_average(hosts: Hosts) -> None:
    """It lies split over the devices of both processes; the first one draws."""
    state = hosts.state("two", STEPS)
    drawn = np.load(hosts.folder / "two" / "samples" / f"step_{STEPS:07d}.npz")
    assert sorted(drawn) == sorted(
        name.removeprefix("ema_params/") for name in state if name.startswith("ema_params/")
    )
    for name in drawn:
        np.testing.assert_array_equal(drawn[name], state[f"ema_params/{name}"])


def test_a_signal_to_one_stops_both_and_the_same_command_continues(hosts: Hosts) -> None:
    """The signal comes after step 20, up to which this run is the run `two` again, bit for bit.

    Continued, it learns what else may end all: a process that cannot read its data."""
    overrides = ("--checkpoint.every", "20", "--checkpoint.keep", "9")
    processes = hosts.start("killed", *overrides, "--steps", "1000000")
    metrics = hosts.folder / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > STEPS + 2):
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = end(processes)
    assert codes == [128 + signal.SIGTERM] * 2, errors
    assert "Traceback" not in errors[0] + errors[1]
    step = newest_step(hosts.folder / "killed")
    assert step is not None and step > STEPS and f"step {step}: saved" in errors[0]
    assert hosts.rows("killed")[:STEPS] == hosts.rows("two")
    again, first = hosts.state("killed", STEPS), hosts.state("two", STEPS)
    assert again.keys() == first.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], again[name], err_msg=name)

    overrides = ("--checkpoint.every", "1000", "--checkpoint.keep", "9", "--log.preview_every", "0")
    codes, errors = hosts.run("killed", *overrides, "--steps", str(step + 9), fail_at=5)
    assert codes == [2, 2], errors
    assert f"continuing {hosts.folder / 'killed'} at step {step}" in errors[0]
    assert errors[0].splitlines()[-1].startswith("error: process 1 of 2 cannot go on")
    assert errors[1].splitlines()[-1] == "error: the disk is gone: mend it"
    # Nothing of a step with rows that were not read is kept.
    assert [row["step"] for row in hosts.rows("killed")] == [*range(1, step + 5)]
    assert newest_step(hosts.folder / "killed") == step


def test_a_step_that_moves_data_unasked_is_an_error(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were not placed on the device before the step."""
    monkeypatch.setattr(loop, "place_rows", lambda rows, mesh: rows)
    recipe = toys.on_folder("linear_prior", hosts.folder, 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        loop.train(recipe, hosts.folder / "unplaced")
