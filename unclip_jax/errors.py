"""The one exception that a user is meant to see."""


class UserError(ValueError):
    """A mistake in what the user gave: the message names the input, the reason and the remedy.

    The command line prints it as one line, without a traceback, and exits with code 2.
    """
