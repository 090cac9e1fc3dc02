"""Prompts from outside: what may be one, and files of them.

A prompt is text for the model and for a picture's metadata. It never becomes a path: a file's name
takes its letters and digits only (`samples.picture_name`). It is never printed as it is: see
`printable`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from unclip_jax.bounded import open_regular, parse_json
from unclip_jax.cli.text_options import PER_RUN, TextOptions
from unclip_jax.config import from_dict
from unclip_jax.errors import UserError, choose
from unclip_jax.files import missing
from unclip_jax.printable import printable

MAX_LINE = 1_000_000
"""Bytes of a line; what it says beyond the model's context is not read anyway."""
MAX_PROMPT = 100_000
"""Characters of a prompt."""
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")
"""Not tab and line feed."""
MAX_NAME = 80
"""Characters of a file's name."""
_NAME = re.compile(f"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{MAX_NAME - 1}}}")
_ALIASES = {"n": "num_images"}
_PER_COMMAND = ("prompt", "prompts", "grid", "format", "shard_size")


@dataclass(frozen=True)
class PromptLine:
    """A prompt, and what is to be otherwise for it than the command line says."""

    prompt: str
    where: str
    """'FILE:LINE', or which prompt of the command line."""
    settings: dict[str, Any] = field(default_factory=dict)
    """By the fields of `TextOptions`."""
    num_images: int | None = None
    name: str | None = None
    """Of its file, without the ending."""


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts of a command line, without white space around them.

    Raises:
        UserError: one is empty, too long, or has control characters or bytes that are not UTF-8.
    """
    return [_check(prompt, f"prompt {place}") for place, prompt in enumerate(prompts, 1)]


def read_prompts(path: str | Path) -> list[PromptLine]:
    """The prompts of a .txt file, one a line, or of a .jsonl file, in order, line by line.

    UTF-8, with or without a byte-order mark; lines end with a line feed, after a carriage return or
    not, and with nothing else. "-" is standard input, JSON lines if it begins with a brace.

    Raises:
        UserError: the file cannot be read, a line is not what its kind asks for, or none is there;
            names the line.
    """
    is_input = str(path) == "-"
    kind = "" if is_input else Path(path).suffix
    if not is_input and kind not in (".txt", ".jsonl"):
        raise UserError(f"--prompts {path}: give a .txt file or a .jsonl file, or -")
    prompts = []
    for where, line in _lines(path):
        kind = kind or (".jsonl" if line.startswith("{") else ".txt")
        if kind == ".jsonl":
            prompts.append(_json_prompt(line, where))
        elif not line.startswith("#"):
            prompts.append(PromptLine(_check(line, where), where))
    if not prompts:
        raise UserError(f"--prompts {path} holds no prompt: write one a line")
    return prompts


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """('FILE:NUMBER', line) of every line that is not blank."""
    is_input = str(path) == "-"
    name = "standard input" if is_input else str(path)
    try:
        with nullcontext(sys.stdin.buffer) if is_input else open_regular(path) as file:
            number = 0
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                where = f"{name}:{number}"
                if len(raw) > MAX_LINE:
                    raise UserError(
                        f"{where} has more than {MAX_LINE} bytes: write one prompt a line"
                    )
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{where} is not UTF-8 ({error.reason}): save the file as UTF-8"
                    ) from None
                if line:
                    yield where, line
    except OSError as error:
        if not Path(path).exists():
            raise UserError(f"--prompts {name} {missing(path)}") from None
        raise UserError(
            f"--prompts {name} cannot be read ({error.strerror}): name a file of prompts, or -"
        ) from error


def _json_prompt(line: str, where: str) -> PromptLine:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error})") from None
    row = row if isinstance(row, dict) else {}
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f'{where} has no text in "prompt": write {{"prompt": "..."}}')
    settings: dict[str, Any] = {}
    for key, value in row.items():
        known = _ALIASES.get(key, str(key)).replace("-", "_")
        if known in settings:
            raise UserError(f"{where}: {known} is given twice: leave one out")
        settings[known] = value
    del settings["prompt"]
    name = settings.pop("name", None)
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise UserError(
            f"{where}: name is {name!r}: give up to {MAX_NAME} letters, digits, - and _, the first "
            "of them no -, and no ending"
        )
    typed = _typed(settings, where)
    if typed.get("negative"):
        typed["negative"] = _check(typed["negative"], f"{where}: negative")
    count = typed.pop("num_images", None)
    return PromptLine(_check(prompt, where), where, typed, count, name)


def _typed(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """The options of a line, each of its type and in its range."""
    if not settings:
        return {}
    for name, value in settings.items():
        if name not in _CHOICES:
            known = sorted({*_CHOICES, "prompt", "name", "n"})
            raise UserError(f"{where}: {name!r} is unknown: {choose(name, known)}")
        choices = _CHOICES[name]
        if choices and value is not None and value not in choices:
            raise UserError(
                f"{where}: {name} is {value!r}: {choose(str(value), map(str, choices))}"
            )
    try:
        options = from_dict(TextOptions, {"prompt": [], **settings})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return {name: getattr(options, name) for name in settings}


def _choices() -> dict[str, tuple[Any, ...]]:
    """What a line may say, and the values of what is chosen from a few."""
    found = {}
    for name, hint in get_type_hints(TextOptions).items():
        if name in (*PER_RUN, *_PER_COMMAND):
            continue
        of_hint = [hint, *get_args(hint)]
        found[name] = tuple(v for h in of_hint if get_origin(h) is Literal for v in get_args(h))
    return found


def _check(prompt: str, where: str) -> str:
    prompt = prompt.replace("\r\n", "\n").strip()
    if not prompt:
        raise UserError(f"{where} is empty: say what to draw")
    if len(prompt) > MAX_PROMPT:
        raise UserError(f"{where} has {len(prompt)} characters, the limit is {MAX_PROMPT}")
    if odd := _CONTROL.search(prompt):
        raise UserError(f"{where} holds the control character {printable(odd[0])}: leave it out")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates: of JSON, or of bytes on the command line
        raise UserError(f"{where} is not text that UTF-8 can hold: write it again") from None
    return prompt


_CHOICES = _choices()
