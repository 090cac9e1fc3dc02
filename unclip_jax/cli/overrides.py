"""Recipe files, and `--optim.learning-rate 1e-4` on top of them."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from unclip_jax.errors import UserError

T = TypeVar("T")


def load_recipe(path: str) -> Any:
    """The value `config` of a recipe file. The file is Python and is executed.

    Raises:
        UserError: no such file, it does not run, or it has no recipe in `config`.
    """
    if not Path(path).is_file():
        raise UserError(f"recipe {path} does not exist: name a file such as configs/emoji/clip.py")
    try:
        config = runpy.run_path(path).get("config")
    except UserError:
        raise
    except Exception as error:  # any mistake in the user's own file
        raise UserError(f"recipe {path} failed: {type(error).__name__}: {error}") from error
    if not is_dataclass(config):
        raise UserError(f"recipe {path} does not define `config`: assign it a recipe")
    return config


def parse(cls: type[T], arguments: Sequence[str], *, default: T | None, program: str) -> T:
    """`cls` from the command line with tyro; `--help` prints every field, its type and default.

    Raises:
        UserError: an unknown option, a wrong type or a value that a config refuses, in one line.
    """
    import tyro

    output = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(
                cls,
                args=list(arguments),
                prog=program,
                config=(
                    tyro.conf.AvoidSubcommands,
                    tyro.conf.FlagConversionOff,
                    tyro.conf.PositionalRequiredArgs,
                ),
                **options,
            )
    except SystemExit as exit_request:
        if exit_request.code in (0, None):
            sys.stderr.write(output.getvalue())
            raise
        raise UserError(_one_line(output.getvalue())) from None


def take(arguments: list[str], name: str) -> tuple[list[str], str | None]:
    """The other arguments, and the value of `name` as `--name value` or `--name=value`."""
    rest: list[str] = []
    value = None
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument == name:
            if position + 1 == len(arguments):
                raise UserError(f"{name} needs a value")
            value = arguments[position + 1]
            position += 2
            continue
        if argument.startswith(name + "="):
            value = argument[len(name) + 1 :]
        else:
            rest.append(argument)
        position += 1
    return rest, value


def _one_line(text: str) -> str:
    """tyro's box of several lines without its frame, its title and its pointer to --help."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    inside = [line for line in text.splitlines() if not line.lstrip().startswith(("╭", "╰"))]
    words = " ".join(re.sub(r"[│─]+", " ", line).strip() for line in inside)
    words = re.sub(r"-{4,}", " ", words)  # the frame, where a terminal has no better lines
    words = re.sub(r"\s+", " ", words).strip()
    return re.sub(r" *(Argument helptext:|For full helptext).*$", "", words)
