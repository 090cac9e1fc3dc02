"""train.py with faults from the environment: python -m tests.faults.run_train RECIPE ARGS

RECORD=FILE         append a line for every batch that the process consumes: its number, a
                    checksum of its rows
FAULTS=KIND:A-B,... the loss and gradient of batches A to B (counted from 0) become nan, inf or
                    spike (a hundred times as large), on this process's rows only
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

from unclip_jax.cli.main import run
from unclip_jax.cli.train import main

FACTORS = {"nan": float("nan"), "inf": float("inf"), "spike": 100.0}


def parse_faults(text: str) -> list[tuple[float, range]]:
    """(factor, numbers of the batches) of each fault."""
    found = []
    for item in filter(None, text.split(",")):
        kind, _, span = item.partition(":")
        first, _, last = span.partition("-")
        found.append((FACTORS[kind], range(int(first), int(last or first) + 1)))
    return found


def record_batches(path: str | None, faults: list[tuple[float, range]]) -> None:
    """The run's batches are recorded as they are consumed, and say how their loss is changed."""
    import numpy as np

    from unclip_jax.training import loop

    open_batches = loop.open_batches

    def recorded(recipe: Any, inputs: Any, bad: Any, start: int) -> Iterator[Any]:
        for number, batch in enumerate(open_batches(recipe, inputs, bad, start), start):
            checksum = 0
            for name in sorted(batch):
                checksum = zlib.crc32(np.ascontiguousarray(batch[name]).tobytes(), checksum)
            if path:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"batch": number, "checksum": checksum}) + "\n")
            time.sleep(float(os.environ.get("PACE", "0")))
            if "FAULTS" in os.environ:
                factor = next((value for value, span in faults if number in span), 1.0)
                rows = len(next(iter(batch.values())))
                batch = {**batch, "fault": np.full(rows, factor, np.float32)}
            yield batch

    loop.open_batches = recorded


def spoil_gradients() -> None:
    """The objective's loss is multiplied by the mean over all rows of the batch's `fault`."""
    import jax

    from unclip_jax.training import program

    def spoiled(recipe: Any, objective: Any, mesh: Any) -> Any:
        def changed(params: Any, frozen: Any, batch: Any, key: Any) -> Any:
            rows = dict(batch)
            factor = rows.pop("fault").mean()
            loss, metrics = objective(params, frozen, rows, key)
            return loss * factor, metrics

        return jax.value_and_grad(changed, has_aux=True)

    program._make_gradient = spoiled


if __name__ == "__main__":
    given = os.environ.get("FAULTS")
    record_batches(os.environ.get("RECORD"), parse_faults(given or ""))
    if given is not None:
        spoil_gradients()
    run(main, sys.argv[1:])
