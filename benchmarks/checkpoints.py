"""What a checkpoint costs: how long saving blocks, and what comparing its bytes adds to a restore.

python benchmarks/checkpoints.py [--gigabytes 1] [--rounds 5]

Restoring with and without the comparison alternates in one run. `at once`: the comparison runs on
threads of its own while Orbax reads. `at the start`: as train.py does, it begins before the run
opens its data and its CLIP and traces the step, for which a second of one busy core stands here.
Cold: the files are dropped from the page cache before, as on a machine that has just been started.
Numbers are seconds, the middle of `rounds`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unclip_jax.config import CheckpointConfig
from unclip_jax.training import checkpoint as module
from unclip_jax.training.checkpoint import Checkpoints
from unclip_jax.training.comparing import Comparing
from unclip_jax.training.manifest import find_damage, read_manifest


def make_state(gigabytes: float) -> dict[str, Any]:
    """Arrays of 64 MB with random weights, which do not compress."""
    draw = np.random.default_rng(0)
    count = max(1, round(gigabytes * 1e9 / 2**26))
    return {
        f"layer_{i}": jax.numpy.asarray(draw.standard_normal((4096, 4096), np.float32))
        for i in range(count)
    }


def keep_a_core_busy(seconds: float) -> None:
    """What a start does on one thread."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def drop_from_cache(folder: Path) -> None:
    """The next one to read these files waits for the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    state = make_state(options.gigabytes)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state
    )
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Any) -> None:
        began = time.monotonic()
        jax.block_until_ready(work())
        times.setdefault(name, []).append(time.monotonic() - began)

    with tempfile.TemporaryDirectory() as folder:
        config = CheckpointConfig(keep=1)
        checkpoints = Checkpoints(Path(folder), config, abstract)
        compare = module.find_damage
        for step in range(1, options.rounds + 1):
            timed("save: the loop waits", lambda step=step: checkpoints.save(step, state, {}, None))
            timed("save: in the background", checkpoints.wait)
            path = Path(folder) / "checkpoints" / str(step)
            manifest = read_manifest(path)
            assert not isinstance(manifest, str)
            for kind in ("cold", "warm"):
                for name, work in (
                    ("not compared", lambda *_: None),
                    ("at once", compare),
                    ("at the start", compare),
                ):
                    module.find_damage = work
                    if kind == "cold":
                        drop_from_cache(path)
                    begun = Comparing(Path(folder)) if name == "at the start" else None
                    opened = Checkpoints(Path(folder), config, abstract, comparing=begun)
                    keep_a_core_busy(1.0)
                    timed(f"{kind}, {name}", partial(opened.restore_newest, abstract))
                    opened.close()
            timed("compare alone", lambda path=path, m=manifest: find_damage(path, m))
        checkpoints.close()
    middle = {name: statistics.median(values) for name, values in times.items()}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    print(f"{size:.2f} GB, jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for name, seconds in middle.items():
        print(f"{name:24} {seconds:7.2f}  ({min(times[name]):.2f} to {max(times[name]):.2f})")
    for kind in ("cold", "warm"):
        for name in ("at once", "at the start"):
            ratio = middle[f"{kind}, {name}"] / middle[f"{kind}, not compared"]
            print(f"{kind}: comparing {name} adds {ratio - 1:.1%} to a restore")


if __name__ == "__main__":
    main()
