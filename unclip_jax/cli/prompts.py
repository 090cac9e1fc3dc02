"""Prompts from outside: what may be one, and files of them.

A prompt is text for the model and for a picture's metadata. It never becomes a path: a file's name
takes its letters and digits only (`samples.picture_name`). It is never printed as it is: see
`printable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from unclip_jax.bounded import parse_json
from unclip_jax.errors import UserError
from unclip_jax.printable import printable

MAX_LINE = 1_000_000
"""Bytes of a line; what it says beyond the model's context is not read anyway."""
MAX_PROMPT = 100_000
"""Characters of a prompt."""
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")
"""Not tab and line feed."""


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts of a command line, without white space around them.

    Raises:
        UserError: one is empty, too long, or has control characters or bytes that are not UTF-8.
    """
    return [_check(prompt, f"prompt {place}") for place, prompt in enumerate(prompts, 1)]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a .txt file, one a line, or of a .jsonl file, in order, line by line.

    UTF-8, with or without a byte-order mark; lines end with a line feed, after a carriage return or
    not, and with nothing else.

    Raises:
        UserError: the file cannot be read, a line is not what its kind asks for, or none is there;
            names the line.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"--prompts {path}: give a .txt file or a .jsonl file")
    read = _json_prompt if path.suffix == ".jsonl" else _text_prompt
    found = (read(line, where) for where, line in _lines(path))
    prompts = [prompt for prompt in found if prompt is not None]
    if not prompts:
        raise UserError(f"--prompts {path} holds no prompt: write one a line")
    return prompts


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """('FILE:NUMBER', line) of every line that is not blank."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                where = f"{path}:{number}"
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
        raise UserError(f"--prompts {path} cannot be read ({error.strerror})") from error


def _text_prompt(line: str, where: str) -> str | None:
    return None if line.startswith("#") else _check(line, where)


def _json_prompt(line: str, where: str) -> str:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error})") from None
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f'{where} has no text in "prompt": write {{"prompt": "..."}}')
    return _check(prompt, where)


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
