"""The one exception that a user is meant to see."""

from collections.abc import Sequence


class UserError(ValueError):
    """A mistake in what the user gave: the message names the input, the reason and the remedy.

    The command line prints it as one line, without a traceback, and exits with `exit_code`.
    """

    exit_code = 2
    """Of the command that it ends."""
    details: Sequence[str] = ()
    """Lines that the command line prints before the message: a list too long for it."""
