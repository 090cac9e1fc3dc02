"""What a verb's dataclass becomes on the command line: flags, their values and choices.

tyro parses; this is for what tyro does not give: one line about a mistake, and shell completion.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal


@dataclass(frozen=True)
class Option:
    """A field of a verb's options."""

    name: str
    """'--data.image-size'; of a positional argument 'PHOTO'."""
    is_positional: bool
    is_switch: bool
    """True or False; alone it is True."""
    is_list: bool
    """Any number of values."""
    choices: tuple[str, ...]
    """All values there are; empty if there are more."""
    words: str
    """What a value is: 'a whole number'."""
    help: str
    """The first sentence of the field's docstring."""


def options_of(cls: type, default: Any = None, prefix: str = "") -> Iterator[Option]:
    """Every field of `cls`, those of parts as '--part.field'.

    Args:
        default: an instance, whose parts say which of several classes a part is of.
    """
    hints, texts = typing.get_type_hints(cls), _field_texts(cls)
    for field in fields(cls):
        if not field.init:
            continue
        value = getattr(default, field.name) if default is not None else _default(field)
        name = prefix + field.name.replace("_", "-")
        if is_dataclass(value) and not isinstance(value, type):
            yield from options_of(type(value), value, f"{name}.")
            continue
        hint = hints[field.name]
        is_positional = value is MISSING
        yield Option(
            field.name.upper() if is_positional else f"--{name}",
            is_positional,
            hint is bool,
            any(Ellipsis in typing.get_args(member) for member in _members(hint)),
            _choices(hint),
            _words(hint),
            texts.get(field.name, ""),
        )


def with_switches(arguments: list[str], options: list[Option]) -> list[str]:
    """`--verify` alone as `--verify True`, which is how tyro reads it."""
    switches = {option.name for option in options if option.is_switch}
    has_words = any(option.is_positional for option in options)
    given: list[str] = []
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for place, argument in enumerate(arguments):
        given.append(argument)
        if argument.replace("_", "-") not in switches or place > end:
            continue
        following = arguments[place + 1] if place + 1 < len(arguments) else "-"
        is_value = following in ("True", "False")
        # Where no verb has a word of its own, one that follows is meant as the value.
        if following.startswith("-") or (has_words and not is_value):
            given.append("True")
    return given


def values_of(arguments: list[str], name: str) -> list[str]:
    """What follows the last `name` up to the next flag."""
    found: list[str] = []
    is_here = False
    for argument in arguments:
        flag, sign, value = argument.partition("=")
        if argument.startswith("--"):
            is_here = flag.replace("_", "-") == name
            if is_here:
                found = [value] if sign else []
        elif is_here:
            found.append(argument)
    return found


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _members(hint: Any) -> list[Any]:
    """What a union is made of, without None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for member in typing.get_args(hint) if member is not type(None)]
    return [hint]


def _choices(hint: Any) -> tuple[str, ...]:
    members = _members(hint)
    if hint is bool:
        return ("True", "False")
    if any(typing.get_origin(member) is not Literal for member in members):
        return ()
    values = tuple(str(value) for member in members for value in typing.get_args(member))
    is_optional = type(None) in typing.get_args(hint)
    return (*values, "None") if is_optional else values


def _words(hint: Any) -> str:
    """A type in words; None, which nobody has to write, is left out."""
    plain = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    parts = []
    for member in _members(hint):
        args = typing.get_args(member)
        if typing.get_origin(member) is Literal:
            parts.append("one of " + ", ".join(map(str, args)))
        elif typing.get_origin(member) is tuple and Ellipsis in args:
            parts.append(f"any number of values, each {_words(args[0])}")
        elif typing.get_origin(member) is tuple:
            parts.append(f"{len(args)} values, each {_words(args[0])}")
        else:
            parts.append(plain.get(member, getattr(member, "__name__", str(member))))
    return " or ".join(parts)


@cache
def _field_texts(cls: type) -> dict[str, str]:
    """First sentences of the docstrings under the fields, also of those that are inherited."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        except (OSError, TypeError):  # made at run time: no source
            continue
        nodes = body.body if isinstance(body, ast.ClassDef) else []
        for node, after in pairwise(nodes):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                text = " ".join(after.value.value.split())
                found[node.target.id] = text.partition(". ")[0].rstrip(".")
    return found
