"""`unclip VERB ...`, `python -m unclip_jax VERB ...`: one way in for every command."""

from __future__ import annotations

import errno
import io
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

from unclip_jax.cli.verbs import VERBS, unknown_verb, usage
from unclip_jax.errors import UserError
from unclip_jax.printable import printable

_LONGEST = 4000
"""Characters of a line about a mistake."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(usage("unclip", VERBS))
        sys.exit(0 if given else 2)
    verb, *rest = given

    def command(rest: Sequence[str]) -> int | None:
        if verb not in VERBS:
            raise UserError(unknown_verb(verb, VERBS))
        module = VERBS[verb].module
        main_of = import_module(f"unclip_jax.cli.{module}").main
        return main_of([verb, *rest] if module == "sample" else rest)

    run(command, rest)


def run(command: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> None:
    """`command(arguments)`; a user's mistake becomes one line on standard error and a code.

    What that line quotes from outside (a name, a prompt) is escaped, so that it cannot act on the
    terminal; and no file's name, in whatever encoding, can make printing it fail.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Pillow warns above 89 million pixels; `decode_image` refuses 64 million in words of its own.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    try:
        sys.exit(command(arguments) or 0)
    except UserError as error:
        lines = [*error.details, f"error: {' '.join(str(error).split())}"]
        print("\n".join(printable(line, _LONGEST) for line in lines), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:  # the one fault of a machine that no code can be blamed for
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = f"error: {error}: free some space and run the same command again"
        print(printable(text, _LONGEST), file=sys.stderr)
        sys.exit(2)
