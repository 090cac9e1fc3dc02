"""Files of text: JSON, JSON lines, recipes. A recipe is Python, and is executed only on request."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from unclip_jax.bounded import MAX_CONFIG, parse_json, read_bounded, read_json
from unclip_jax.errors import UserError
from unclip_jax.inspection.findings import Finding

_LONGEST_LINE = 1_000_000
_MOST_KEYS = 50


def look_at_json(path: Path) -> Finding:
    """A config, or any JSON.

    Raises:
        UserError: it cannot be read.
    """
    try:
        data = read_json(path, 64_000_000)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): restore the file") from error
    if not isinstance(data, dict):
        size = {"entries": len(data)} if isinstance(data, list) else {"value": data}
        return Finding("JSON", size)
    recipe = data.get("recipe", data)
    if not isinstance(recipe, dict) or "stage" not in recipe:
        return Finding("JSON", data)
    problems: list[str] = []
    try:
        from unclip_jax.training.recipe import recipe_from_json

        recipe_from_json(recipe)
    except UserError as error:
        problems.append(str(error))
    return Finding("config of a stage", data, problems=tuple(problems))


def look_at_lines(path: Path) -> Finding:
    """JSON lines, such as metrics.jsonl or manifest.jsonl: how many, and what each key holds.

    Raises:
        UserError: it cannot be read.
    """
    count, bad = 0, 0
    keys: dict[str, dict[str, Any]] = {}
    last: Any = None
    try:
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                if not line.strip():
                    continue
                count += 1
                try:
                    row = parse_json(line)
                except ValueError:
                    bad += 1
                    continue
                last = row
                for key, value in row.items() if isinstance(row, dict) else ():
                    if key in keys or len(keys) < _MOST_KEYS:
                        _add(keys.setdefault(key, {"lines": 0}), value)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore the file") from error
    facts = {"lines": count, "keys": {key: _words(found) for key, found in keys.items()}}
    if isinstance(last, dict):
        facts["last line"] = last
    problems = (f"{bad} lines are no JSON",) if bad else ()
    return Finding("JSON lines", facts, problems=problems)


def _add(found: dict[str, Any], value: Any) -> None:
    found["lines"] += 1
    if isinstance(value, int | float) and not isinstance(value, bool):
        found["least"] = min(found.get("least", value), value)
        found["most"] = max(found.get("most", value), value)
    elif isinstance(value, str):
        found.setdefault("first", value[:80])


def _words(found: dict[str, Any]) -> str:
    words = f"{found['lines']} lines"
    if "least" in found:
        words += f", {found['least']:g} to {found['most']:g}"
    if "first" in found:
        words += f", such as {found['first']!r}"
    return words


def look_at_recipe(path: Path, recipe: Any | None) -> Finding:
    """A recipe's file: its docstring and the text of `config`; of one that was run, what it is.

    Args:
        recipe: the value of `config`, where the file was executed.
    Raises:
        UserError: it cannot be read, or is no Python.
    """
    try:
        tree = ast.parse(read_bounded(path, MAX_CONFIG))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as Python ({error}): mend it") from error
    facts: dict[str, Any] = {"says": " ".join((ast.get_docstring(tree) or "").split())}
    if recipe is not None:
        from unclip_jax.inspection.recipes import recipe_leaves
        from unclip_jax.training.recipe import recipe_to_json

        return Finding("recipe", {**facts, **recipe_to_json(recipe)}, recipe_leaves(recipe))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            facts[node.targets[0].id] = ast.unparse(node.value)
        if isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
            facts[node.target.id] = ast.unparse(node.value)
    problems = () if "config" in facts else ("it does not assign `config`",)
    facts["not executed"] = "--run runs the file, as training does, and counts its parameters"
    return Finding("recipe", facts, problems=problems)
