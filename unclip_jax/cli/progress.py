"""What a command says while it works: on standard error, so that its output stays its result."""

from __future__ import annotations

import sys

from unclip_jax.printable import printable


def say(text: str) -> None:
    """A line, once for all hosts that work together; what would act on a terminal is escaped."""
    jax = sys.modules.get("jax")
    if jax is None or jax.process_index() == 0:
        print(printable(text, None), file=sys.stderr, flush=True)
