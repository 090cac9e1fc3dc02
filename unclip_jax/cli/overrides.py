"""Recipe files, and `--optim.learning-rate 1e-4` on top of them."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from unclip_jax.cli.options import Option, options_of, values_of, with_switches
from unclip_jax.errors import UserError, choose, nearest
from unclip_jax.files import missing

T = TypeVar("T")


def load_recipe(path: str) -> Any:
    """The value `config` of a recipe file. The file is Python and is executed.

    Raises:
        UserError: no such file, it does not run, or it has no recipe in `config`.
    """
    if not Path(path).is_file():
        if Path(path).is_dir():
            raise UserError(f"recipe {path} is a folder: name a file such as {path}/decoder.py")
        raise UserError(f"recipe {path} {missing(path)}")
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
    known = list(options_of(cls, default))
    given = with_switches(list(arguments), known)
    _refuse_repeated_lists(given, known)
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(
                cls,
                args=given,
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
        raise UserError(_explain(_one_line(output.getvalue()), given, known, program)) from None


class OneLineParser(argparse.ArgumentParser):
    """argparse whose mistakes are a `UserError`, with the nearest name."""

    def error(self, message: str) -> NoReturn:
        """Raises it."""
        if match := re.search(r"argument (\S+): invalid choice: '(.*?)' \(choose from", message):
            choices = re.findall(r"[\w-]+", message.partition("(choose from")[2])
            raise UserError(f"{match[1]} {match[2]!r} is unknown: {choose(match[2], choices)}")
        if match := re.search(r"unrecognized arguments: (\S+)", message):
            known = sorted(name for name in self._flags() if name.startswith("--"))
            raise UserError(unknown_option(match[1].partition("=")[0], known, self.prog))
        raise UserError(f"{message}: {self.prog} --help shows how")

    def _flags(self) -> set[str]:
        """Its own, and those of its commands: what a command does not know, it hands back."""
        flags = {name for action in self._actions for name in action.option_strings}
        for action in self._actions:
            commands = action.choices.values() if isinstance(action.choices, dict) else ()
            flags = flags.union(*(command._flags() for command in commands))
        return flags


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


def unknown_option(name: str, known: Sequence[str], program: str) -> str:
    """The line about a flag that `program` does not have."""
    near = nearest(name, known)
    if near is None:  # '--learning-rate' for '--optim.learning-rate'
        tails = {f"--{flag.rpartition('.')[2].lstrip('-')}": flag for flag in known}
        near = tails.get(nearest(f"--{name.rpartition('.')[2].lstrip('-')}", tails) or "")
    what = f"{name} is no option of {program}"
    meant = f"{program} --help lists them" if near is None else f"did you mean {near}?"
    return f"{what}: {meant}"


def _refuse_repeated_lists(given: Sequence[str], known: Sequence[Option]) -> None:
    """`--input a --input b` would mean b alone."""
    before = given[: given.index("--")] if "--" in given else given
    flags = [one.partition("=")[0].replace("_", "-") for one in before if one.startswith("--")]
    for option in known:
        if option.is_list and flags.count(option.name) > 1:
            raise UserError(
                f"{option.name} is given {flags.count(option.name)} times: give its values after "
                f"one another, {option.name} FIRST SECOND"
            )


_BEGINNING = re.compile(
    r"Unrecognized options:|invalid choice '|Error parsing|Missing value for|Missing from"
)


def _explain(said: str, given: list[str], known: list[Option], program: str) -> str:
    """The line about a mistake, from what tyro said and what was given.

    tyro shows all flags that are like one, and the Python types; a union names every type it tried.
    """
    by_name = {option.name: option for option in known if not option.is_positional}
    if start := _BEGINNING.search(said):  # without a terminal a title stands before it
        said = said[start.start() :]
    if said.startswith("Unrecognized options"):
        flags = [argument.partition("=")[0] for argument in given if argument.startswith("-")]
        for flag in flags:
            if flag.replace("_", "-") not in by_name and not _is_number(flag):
                return unknown_option(flag, list(by_name), program)
        stray = said.partition(": ")[2]
        return f"{program} does not take {stray!r}: {program} --help shows what it takes"
    if match := re.match(r"invalid choice '(.*)' for argument '([^']+)'", said):
        value, name = match.groups()
        option = by_name.get(name) or _positional(known, name)
        if option is not None:
            return f"{option.name} is {value!r}: {choose(value, option.choices)}"
    if match := re.match(r"(?:Error parsing|Missing value for argument) '?(--[\w.-]+)", said):
        option = by_name.get(match[1])
        values = " ".join(values_of(given, match[1]))
        if option is not None:
            is_what = f"is {values!r}" if values else "has no value"
            return f"{option.name} {is_what}: give {option.words}"
    if said.startswith("Missing from"):
        # A list may be empty: it is never what is missing.
        single = (option for option in known if not option.is_list)
        needed = [option for option in single if option.is_positional]
        lacking = needed[-said.count("(required)") :]
        names = " and ".join(f"{option.name} ({_meaning(option)})" for option in lacking)
        return f"{program} needs {names}: {program} --help shows how"
    # What a dataclass refuses names its field itself.
    return re.sub(r"^Error parsing [\w.]+: ", "", said)


def _meaning(option: Option) -> str:
    return f"one of {', '.join(option.choices)}" if option.choices else option.help


def _positional(known: Sequence[Option], name: str) -> Option | None:
    return next((one for one in known if one.is_positional and one.name == name.upper()), None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _one_line(text: str) -> str:
    """tyro's box of several lines without its frame, its title and its pointer to --help."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    inside = [line for line in text.splitlines() if not line.lstrip().startswith(("╭", "╰"))]
    words = " ".join(re.sub(r"[│─]+", " ", line).strip() for line in inside)
    words = re.sub(r"-{4,}", " ", words)  # the frame, where a terminal has no better lines
    words = re.sub(r"\s+", " ", words).strip()
    return re.sub(r" *(Argument helptext:|For full helptext).*$", "", words)
