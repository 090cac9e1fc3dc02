"""From prompts and options to a list of pictures, what each is called, and the sheet of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unclip_jax.cli.prompts import PromptLine
from unclip_jax.cli.text_options import TextOptions
from unclip_jax.errors import UserError
from unclip_jax.samples import picture_name

ROWS = ("seed", "guidance", "negative")
"""Options that are inputs of a compiled program, so that another value compiles nothing."""
RESERVED = ("grid", "manifest")
MAX_COLUMNS = 100
_GRID = re.compile(r"rows=prompts,cols=(seeds|guidance|steps)(?::(.+))?")
_RANGE = re.compile(r"(\d{1,10})\.\.(\d{1,10})")


@dataclass(frozen=True)
class Wanted:
    """A picture to draw."""

    prompt: str
    seed: int
    index: int
    negative: str
    guidance: float | None
    """None is the model's."""
    settings: int
    """Number of the options that decide the rest."""


@dataclass
class TextPlan:
    """All pictures of a command, in the order of their numbers."""

    pictures: list[Wanted] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Of their files."""
    settings: list[tuple[str, TextOptions]] = field(default_factory=list)
    """Where each was first asked for, and the options."""
    rows: list[tuple[str, range]] = field(default_factory=list)
    """Of the sheet: a prompt and the numbers of its pictures."""
    columns: tuple[str, ...] = ()
    """Words above the sheet's columns; none for a sheet without words."""


Column = tuple[str, dict[str, Any]]
"""What is written above a column of the sheet, and its settings."""


def make_plan(lines: Sequence[PromptLine], options: TextOptions) -> TextPlan:
    """The pictures of all lines.

    Raises:
        UserError: two files of one name, or a grid that cannot be; names the lines.
    """
    columns = read_grid(options.grid, options)
    plan = TextPlan(columns=tuple(label for label, _ in columns))
    known: dict[tuple[Any, ...], int] = {}
    where_of: dict[str, str] = {}
    for line in lines:
        if columns and line.num_images is not None:
            raise UserError(f"{line.where}: n is given, and --grid has one picture a cell")
        count = line.num_images or options.num_images
        cells = [own for _, own in columns] or [{}]
        indices = [0] if columns else range(count)
        start = len(plan.pictures)
        wanted = [(index, {**line.settings, **own}) for own in cells for index in indices]
        for place, (index, own) in enumerate(wanted):
            plan.pictures.append(_wanted(plan, known, line, index, own, options))
            facts = {"prompt": line.prompt, "index": index, "verb": "text"}
            name = _own_name(line, place, len(wanted)) or picture_name(len(plan.names), facts)
            before = where_of.setdefault(name.casefold(), line.where)
            if before != line.where:
                raise UserError(
                    f"{line.where} and {before} both write {name}: give one of them another name"
                )
            plan.names.append(name)
        plan.rows.append((line.prompt, range(start, len(plan.pictures))))
    return plan


def read_grid(text: str | None, options: TextOptions) -> list[Column]:
    """The columns of --grid; none if there is none.

    Raises:
        UserError: it is not of the form that the option's help shows.
    """
    if text is None:
        return []
    match = _GRID.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UserError(
            f"--grid is {text!r}: give rows=prompts,cols=seeds:0..3, rows=prompts,cols="
            "guidance:1,2,4 or rows=prompts,cols=steps:10,25,50"
        )
    kind, given = match.groups()
    if given is None and kind != "seeds":
        raise UserError(f"--grid is {text!r}: say which {kind}, as in cols={kind}:1,2,4")
    if given is None:
        given = f"{options.seed}..{options.seed + options.num_images - 1}"
    if between := _RANGE.fullmatch(given):
        first, last = map(int, between.groups())
        values = [str(one) for one in range(first, min(last, first + MAX_COLUMNS) + 1)]
    else:
        values = given.split(",")
    if not 1 <= len(values) <= MAX_COLUMNS:
        raise UserError(f"--grid is {text!r}: give 1 to {MAX_COLUMNS} columns, the least first")
    return [_column(kind, value, text, options) for value in values]


def _column(kind: str, value: str, text: str, options: TextOptions) -> Column:
    name = {"seeds": "seed"}.get(kind, kind)
    try:
        typed = {"seed": int, "guidance": float, "steps": _steps}[name](value)
        replace(options, **{name: typed})
    except UserError as error:
        raise UserError(f"--grid is {text!r}: {error}") from None
    except ValueError:
        raise UserError(f"--grid is {text!r}: {value!r} is no number for {kind}") from None
    return f"{name} {value}", {name: typed}


def _steps(value: str) -> int | str:
    return int(value) if value.isdecimal() else value


def _wanted(
    plan: TextPlan,
    known: dict[tuple[Any, ...], int],
    line: PromptLine,
    index: int,
    own: dict[str, Any],
    options: TextOptions,
) -> Wanted:
    compiled = {name: value for name, value in own.items() if name not in ROWS}
    key = tuple(sorted((name, repr(value)) for name, value in compiled.items()))
    if key not in known:
        known[key] = len(plan.settings)
        plan.settings.append((line.where, replace(options, **compiled)))
    return Wanted(
        line.prompt,
        own.get("seed", options.seed),
        index,
        own.get("negative", options.negative),
        own.get("guidance", options.guidance),
        known[key],
    )


def _own_name(line: PromptLine, place: int, count: int) -> str | None:
    """Of a line's picture, the `place`-th of `count`, if it was given one."""
    if line.name is None:
        return None
    if line.name.casefold() in RESERVED:
        raise UserError(f"{line.where}: the name {line.name!r} is taken: give another")
    return f"{line.name}.png" if count == 1 else f"{line.name}_{place}.png"
