"""python -m tests.fuzz.guided TARGET [libFuzzer's options and folders]: one target under atheris.

`python -m tests.fuzz` calls this as a process of its own, because libFuzzer ends the process that
it runs in.
"""

from __future__ import annotations

import sys
import warnings

import atheris


def main() -> None:
    """Never returns."""
    name, *options = sys.argv[1:]
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["unclip_jax", "pickletools", "PIL", "html", "ftfy"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
