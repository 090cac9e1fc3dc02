"""train.py with the toys' small arrays split over the mesh: python -m tests.training.hosts_run ARGS

Its preview writes the averaged weights that it is given. FAIL_AT_BATCH=N makes the N-th batch of a
process raise.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unclip_jax.cli import preview
from unclip_jax.cli.main import run
from unclip_jax.cli.train import main
from unclip_jax.errors import UserError
from unclip_jax.training import sharding


def write_weights(stage: Any, path: Path) -> None:
    import numpy as np

    from unclip_jax.training.weights import flatten

    np.savez(path.with_suffix(".npz"), **flatten(stage.params))


def fail_at(number: int) -> None:
    """The run's batches raise at the `number`-th."""
    from unclip_jax.training import loop

    open_batches = loop.open_batches

    def failing(*arguments: Any) -> Iterator[Any]:
        yield from itertools.islice(open_batches(*arguments), number - 1)
        raise UserError("the disk is gone: mend it")

    loop.open_batches = failing


if __name__ == "__main__":
    sharding.SMALLEST_SHARDED = 64
    preview.make_preview = lambda recipe: write_weights if recipe.log.preview_every else None
    if "FAIL_AT_BATCH" in os.environ:
        fail_at(int(os.environ["FAIL_AT_BATCH"]))
    run(main, sys.argv[1:])
