"""`--help` of every verb: every field with its default, and nothing heavy imported on the way."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from unclip_jax.cli import main as command_line
from unclip_jax.cli import sample
from unclip_jax.cli.edit import EDITS
from unclip_jax.cli.options import options_of, with_switches
from unclip_jax.cli.verb_options import all_options
from unclip_jax.cli.verbs import GROUPS, SAMPLE, VERBS

HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "grain", "tensorflow_datasets"}
PARSED = [name for name, verb in VERBS.items() if verb.options]


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        command_line.main([*arguments, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def options_class(verb: str) -> type:
    module, _, name = VERBS[verb].options.partition(":")
    return getattr(import_module(f"unclip_jax.cli.{module}"), name)


def test_nothing_heavy_is_imported(repository: Path) -> None:
    """In one process, verb after verb: what the first one imports would be seen."""
    program = f"""
import contextlib, io, sys
from unclip_jax.cli.main import main
for verb in {list(VERBS)}:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main([verb, "--help"])
        except SystemExit as end:
            assert end.code == 0, verb
    found = {HEAVY} & {{name.partition(".")[0] for name in sys.modules}}
    assert not found, (verb, found)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("verb", PARSED)
def test_help_shows_every_option_and_default(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that completion and the line about a mistake know are those that tyro parses."""
    text = help_of(capsys, verb)
    known = list(options_of(options_class(verb)))
    flags = {option.name for option in known if not option.is_positional}
    shown = set(re.findall(r"^\W{1,3}(?:-h, )?(--[a-z][\w.-]*)", text, re.MULTILINE))
    assert shown - {"--help"} == flags
    assert len(flags) <= text.count("(default:") <= len(known)
    assert all(option.help for option in known if "." not in option.name), verb


@pytest.mark.parametrize("program", ["unclip", "sample.py"])
def test_verbs_are_listed_in_one_order(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.run(sample.main if program == "sample.py" else _unclip, ["--help"])
    lines = re.findall(r"^  ([\w-]+)  +(.+)$", capsys.readouterr().out, re.MULTILINE)
    verbs = SAMPLE if program == "sample.py" else VERBS
    assert lines == [(verb.name, verb.text) for verb in verbs.values()]
    assert all(len(text) < 90 and text[-1] != "." for _, text in lines)


def _unclip(arguments: object) -> int:
    command_line.main(["--help"])
    return 0


def test_every_verb_has_its_module_and_its_options() -> None:
    assert sum(map(len, GROUPS.values())) == len(VERBS)
    assert set(EDITS) | {"text"} <= set(SAMPLE)
    for verb in VERBS.values():
        assert callable(import_module(f"unclip_jax.cli.{verb.module}").main)
    assert all(all_options().values())


def test_an_edit_is_a_verb_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "vary")
    with pytest.raises(SystemExit):
        command_line.run(sample.main, ["vary", "--help"])
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["path", "--json"], ["path", "--json", "True"]),
        (["--json", "path"], ["--json", "True", "path"]),
        (["--json", "False", "path"], ["--json", "False", "path"]),
        (["--json=False", "path"], ["--json=False", "path"]),
        (["--verify", "--json", "path"], ["--verify", "True", "--json", "True", "path"]),
        (["--depth", "2", "path"], ["--depth", "2", "path"]),
        (["--", "--json"], ["--", "--json"]),
    ],
)
def test_a_switch_may_stand_alone(given: list[str], read: list[str]) -> None:
    assert with_switches(given, list(options_of(options_class("inspect")))) == read
