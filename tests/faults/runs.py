"""Runs of train.py as processes: start them, hurt them, and look at what they left."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
EVERY = 5
"""Steps between checkpoints."""
STEPS = 60
Process = subprocess.Popen[str]


class Runs:
    """Toy CLIPs on twelve pictures, in folders below `folder`.

    Compiled programs are kept in a folder that all processes share: a start takes seconds.
    """

    def __init__(self, folder: Path) -> None:
        from tests.training import toys

        self.folder = folder
        toys.write_pictures(folder / "pictures")
        self._env = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
        }

    def start(
        self,
        name: str,
        *arguments: str,
        steps: int = STEPS,
        faults: str | None = None,
        **env: str,
    ) -> Process:
        """One process of the run `name`.

        Args:
            faults: see `run_train`; None trains with the program as it is.
        """
        command = [sys.executable, "-m", "tests.faults.run_train", "configs/toy/clip.py"]
        command += ["--workdir", str(self.folder / name), "--steps", str(steps)]
        command += ["--data.source", str(self.folder / "pictures"), "--log.every", "1"]
        command += ["--checkpoint.every", str(EVERY), "--log.preview_every", "0", *arguments]
        record = {"RECORD": str(self.folder / f"{name}.{env.get('JAX_PROCESS_ID', '0')}.batches")}
        given = {} if faults is None else {"FAULTS": faults}
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**self._env, **record, **given, **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def hosts(
        self,
        name: str,
        *arguments: str,
        count: int = 2,
        faults: Sequence[str | None] = (),
        **env: str,
    ) -> list[Process]:
        """`count` processes of one run, of two devices together."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
        shared |= {"JAX_NUM_CPU_DEVICES": str(2 // count), **env}
        if count == 1:
            shared = {"JAX_NUM_CPU_DEVICES": "2", **env}
        given = list(faults) or [None] * count
        return [
            self.start(name, *arguments, faults=given[i], **shared, JAX_PROCESS_ID=str(i))
            if count > 1
            else self.start(name, *arguments, faults=given[i], **shared)
            for i in range(count)
        ]

    def rows(self, name: str) -> list[dict[str, float]]:
        """metrics.jsonl without what depends on the machine."""
        from unclip_jax.training.step_log import SPEEDS

        path = self.folder / name / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        return [{k: v for k, v in json.loads(x).items() if k not in SPEEDS} for x in lines]

    def batches(self, name: str, process: int = 0) -> list[tuple[int, int]]:
        """(number, checksum) of the batches that a process consumed, each once, in order.

        Raises:
            AssertionError: a batch was not the same when it came again.
        """
        found: dict[int, int] = {}
        for line in (self.folder / f"{name}.{process}.batches").read_text().splitlines():
            row = json.loads(line)
            assert found.setdefault(row["batch"], row["checksum"]) == row["checksum"]
        return sorted(found.items())

    def steps(self, name: str) -> list[int]:
        """The checkpoints of a run."""
        folder = self.folder / name / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())

    def state(self, name: str) -> dict[str, Any]:
        """Every array of the newest checkpoint, whole, by its path."""
        return read_state(self.folder / name / "checkpoints" / str(self.steps(name)[-1]))

    def wait_for_step(self, name: str, step: int, process: Process, timeout: float = 120) -> None:
        """Until `step` is in the metrics, or the process has ended."""
        path = self.folder / name / "metrics.jsonl"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and process.poll() is None:
            if path.exists() and path.read_bytes().count(b"\n") >= step:
                return
            time.sleep(0.002)

    def same(self, name: str, other: str) -> str:
        """What differs between the ends of two runs; '' if nothing does."""
        import numpy as np

        mine, theirs = self.state(name), self.state(other)
        if mine.keys() != theirs.keys():
            return "other arrays"
        for key, value in mine.items():
            if not np.array_equal(value, theirs[key], equal_nan=True):
                return key
        if self.rows(name) != self.rows(other):
            return "metrics.jsonl"
        return "" if self.batches(name) == self.batches(other) else "order of examples"


def read_state(path: Path) -> dict[str, Any]:
    """Every array of a checkpoint, whole, by its path."""
    import jax
    from orbax.checkpoint import v1 as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # of the recipe beside the arrays

    from unclip_jax.training.weights import flatten

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = ocp.checkpointables_metadata(str(path.absolute())).metadata["state"]
    whole = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
    )
    state = ocp.load_checkpointables(str(path.absolute()), {"state": whole})["state"]
    return {name: jax.device_get(leaf) for name, leaf in flatten(state).items()}


def end(process: Process, timeout: float = 180) -> tuple[int, str]:
    """Exit code and standard error; the process is not left behind."""
    try:
        _, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, errors


def end_all(processes: Sequence[Process]) -> tuple[list[int], list[str]]:
    """`end` of each."""
    found = [end(process) for process in processes]
    return [code for code, _ in found], [errors for _, errors in found]


def kill_at(runs: Runs, name: str, step: int, pause: float) -> tuple[int, float]:
    """Start the run and kill -9 it `pause` seconds after `step` is in its metrics.

    Returns:
        the step that it had reached, and seconds from the start until its first step was done.
    """
    batches = runs.folder / f"{name}.0.batches"
    before = _lines(batches)
    began = time.monotonic()
    process = runs.start(name, PACE="0.05")  # some steps between two saves
    while _lines(batches) < before + 2 and process.poll() is None:
        time.sleep(0.01)
    resumed = time.monotonic() - began
    runs.wait_for_step(name, step, process)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    end(process)
    return _lines(runs.folder / name / "metrics.jsonl"), resumed


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def attempts(rounds: int, seed: int) -> list[tuple[int, float]]:
    """(step, pause) of kills in one chain: a few steps each further, at any moment of a step or of
    a save."""
    draw = random.Random(seed)
    points = sorted(draw.sample(range(2, STEPS - 1), min(rounds, STEPS - 3)))
    return [(step, draw.random() * 0.15) for step in points]
