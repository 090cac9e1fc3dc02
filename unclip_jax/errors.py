"""The one exception that a user is meant to see, and what it says about a name that is unknown."""

from collections.abc import Iterable, Sequence

_LONGEST, _MOST = 100, 10_000
"""Letters and names that are compared: what is compared may come from a stranger's file."""
_SHOWN = 24


class UserError(ValueError):
    """A mistake in what the user gave: the message names the input, the reason and the remedy.

    The command line prints it as one line, without a traceback, and exits with `exit_code`.
    """

    exit_code = 2
    """Of the command that it ends."""
    details: Sequence[str] = ()
    """Lines that the command line prints before the message: a list too long for it."""


def nearest(given: str, names: Iterable[str]) -> str | None:
    """The name that `given` was probably meant to be; None if none is like it."""
    from difflib import get_close_matches
    from itertools import islice

    def plain(name: str) -> str:
        return name[:_LONGEST].casefold().replace("_", "-")

    by_plain = {plain(name): name for name in islice(names, _MOST)}
    wanted = plain(given)
    found = get_close_matches(wanted, by_plain)
    # The letters in another order before a letter more or less: ddmi is ddim and not ddpm.
    found.sort(key=lambda name: sorted(name) != sorted(wanted))
    return by_plain[found[0]] if found else None


def choose(given: str, names: Iterable[str]) -> str:
    """The remedy for a name that is unknown: the nearest one, and what else there is."""
    known = list(names)
    listed = ", ".join(known[:_SHOWN]) + (", ..." if known[_SHOWN:] else "")
    near = nearest(given, known)
    return f"choose one of {listed}" if near is None else f"did you mean {near}? Known: {listed}"
