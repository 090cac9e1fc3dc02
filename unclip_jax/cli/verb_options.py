"""The options of every verb, from the classes and parsers that read them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import import_module

from unclip_jax.cli.options import Option, options_of
from unclip_jax.cli.verbs import VERBS, Verb


def all_options() -> dict[str, list[Option]]:
    """By verb, in the order of `VERBS`."""
    return {name: list(_options(verb)) for name, verb in VERBS.items()}


def _options(verb: Verb) -> Iterator[Option]:
    if verb.name in ("train", "plan"):
        yield from _recipe_options(verb)
    elif verb.name == "data":
        yield from _data_options()
    else:
        module, _, name = verb.options.partition(":")
        yield from options_of(getattr(import_module(f"unclip_jax.cli.{module}"), name))


def _recipe_options(verb: Verb) -> Iterator[Option]:
    """The verb's own flags, as its help has them, and the fields of every stage's recipe."""
    from unclip_jax.training.recipe import STAGES

    usage = import_module(f"unclip_jax.cli.{verb.module}").USAGE
    for flag, text in re.findall(r"^  (--[a-z-]+)(?: \S+)?  +(.+)$", usage, re.MULTILINE):
        yield Option(flag, False, False, False, (), "text", text)
    seen: dict[str, Option] = {}
    for recipe in STAGES.values():
        for option in options_of(recipe):
            if not option.is_positional:
                seen.setdefault(option.name, option)
    yield from seen.values()


def _data_options() -> Iterator[Option]:
    """Of `unclip data`, whose commands argparse reads."""
    from unclip_jax.cli.data import parser

    flags: dict[str, Option] = {}
    for action in parser()._actions:
        if not isinstance(action.choices, dict):
            continue
        yield Option("COMMAND", True, False, False, tuple(action.choices), "text", "what to do")
        for command in action.choices.values():
            flags |= {option.name: option for option in _argparse_options(command)}
    yield from flags.values()


def _argparse_options(command: argparse.ArgumentParser) -> Iterator[Option]:
    for action in command._actions:
        for name in action.option_strings:
            if name.startswith("--") and name != "--help":
                yield Option(name, False, False, False, (), "text", action.help or "")
