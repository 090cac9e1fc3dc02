"""A lowered program through the TPU's compiler, and its word on what does not fit."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import jax

from unclip_jax.errors import UserError

QUICK = {"xla_optimization_level": "EFFORT_O0"}
"""Compiler options of a plan: a tenth of the time, for a program that needs rather more memory."""
_NEEDS = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFitError(UserError):
    """The compiler's word that a chip has too little memory."""

    def __init__(self, needed: float, capacity: float) -> None:
        self.needed, self.capacity = needed, capacity
        super().__init__(
            f"a chip would need {needed / 2**30:.1f} GiB and has {capacity / 2**30:.1f} GiB"
        )


def compile_for_chips(lowered: Any, *, is_quick: bool) -> tuple[Any, str]:
    """The compiled program, and its text.

    Args:
        lowered: `jax.stages.Lowered` for the platform "tpu".
        is_quick: with `QUICK`; else as a run compiles.
    Raises:
        DoesNotFitError: the chip's memory is too small.
    """
    options: dict[str, Any] = QUICK if is_quick else {}
    with tempfile.TemporaryDirectory() as dump:
        try:
            # `as_text` fails on the transfers of a v5p or a v6e; the compiler's own file has them.
            compiled = lowered.compile(
                compiler_options={**options, "xla_dump_to": dump, "xla_dump_hlo_as_text": True}
            )
            (path,) = Path(dump).glob("*.after_optimizations.txt")
            return compiled, path.read_text(encoding="utf-8")
        except jax.errors.JaxRuntimeError as error:
            if needs := _NEEDS.search(str(error)):
                used, unit, limit, limit_unit = needs.groups()
                raise DoesNotFitError(
                    float(used) * _UNITS[unit], float(limit) * _UNITS[limit_unit]
                ) from error
            raise
