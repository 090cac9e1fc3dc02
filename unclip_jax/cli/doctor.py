"""unclip doctor: what this installation has, and what is wrong with it."""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unclip_jax.cli.health import Check, all_checks
from unclip_jax.cli.overrides import parse
from unclip_jax.errors import UserError
from unclip_jax.printable import printable


@dataclass(frozen=True)
class DoctorOptions:
    """Versions, devices, memory, caches, disk and settings, with a remedy for each that is wrong.

    Exit code 1 if something is. Names neither the user nor the machine, so that it can be shown to
    others: the home folder is ~.
    """

    json: bool = False
    """One JSON object instead of a table."""
    timeout: int = 120
    """Seconds that JAX may take to find its devices; a TPU that another process holds can block."""

    def __post_init__(self) -> None:
        if self.timeout < 1:
            raise UserError(f"--timeout is {self.timeout}: give 1 second or more")


def main(arguments: Sequence[str]) -> int:
    """Prints the findings; returns 1 if there is a problem, else 0."""
    options = parse(DoctorOptions, arguments, default=None, program="unclip doctor")
    checks = [_shown(check) for check in all_checks(options.timeout)]
    problems = [check for check in checks if check.state == "problem"]
    if options.json:
        rows = [vars(check) for check in checks]
        print(json.dumps({"ok": not problems, "checks": rows}, indent=1))
        return 1 if problems else 0
    width = max(len(check.name) for check in checks)
    marks = {"ok": " ", "note": "-", "problem": "!"}
    for check in checks:
        print(f"{marks[check.state]} {check.name:{width}}  {check.value}")
        if check.remedy:
            kind = "fix" if check.state == "problem" else "note"
            print(f"  {'':{width}}  {kind}: {check.remedy}")
    words = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"\n{words}: {', '.join(check.name for check in problems)}" if problems else "\nall well")
    return 1 if problems else 0


def _shown(check: Check) -> Check:
    return Check(check.name, anonymous(check.value), check.state, anonymous(check.remedy))


def anonymous(text: str) -> str:
    """`text` without the home folder, the user's name and the machine's."""
    home = str(Path.home())
    if home != "/":
        text = text.replace(home, "~")
    for name, stand_in in ((_user(), "USER"), (socket.gethostname(), "HOST")):
        # As a word of its own; a name of two letters would be found everywhere.
        if len(name) > 2 and name != "root":
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", stand_in, text)
    return printable(text, 2000)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        return ""
